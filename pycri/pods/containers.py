# SPDX-License-Identifier: Apache-2.0
"""Containers: create, start, stop, remove, look.

A container's facts change in this order, each written before it is shown: created, started,
finished. Start and finish hold the container's lock, so an exit that arrives while the start is
still being recorded waits its turn. Stop holds none: it signals and waits, and a second call may
shorten the wait of the first.
"""

import asyncio
import secrets
import time
from contextlib import ExitStack

from pycri.errors import AlreadyExists, NotFound, PycriError, WrongState
from pycri.model.cdi import DeviceEdits
from pycri.model.container import ContainerRecord, ContainerSpec, ContainerState
from pycri.model.ids import ContainerId, TaskId
from pycri.model.image import Image
from pycri.model.pod import PodRecord, PodState
from pycri.plan.container import container_cgroup, container_log_path, plan_container
from pycri.plan.environment import stop_signal
from pycri.pods.catalogue import with_facts
from pycri.pods.endings import Endings
from pycri.pods.foundation import Foundation
from pycri.pods.hooks import render_bundle, run_poststart
from pycri.pods.planning import Additions, Planner
from pycri.pods.rollback import Rollback
from pycri.pods.sources import check_propagation, propagating_mounts
from pycri.pods.timeline import Timeline
from pycri.wire.messages import TaskStarted

START_FAILED_EXIT_CODE = 128


class Containers:
    """The use cases of containers, in the words of the CRI."""

    def __init__(self, foundation: Foundation, planner: Planner, endings: Endings) -> None:
        self._catalogue = foundation.catalogue
        self._spawner = foundation.spawner
        self._layout = foundation.layout
        self._planner = planner
        self._endings = endings
        self._creating: dict[
            tuple[str, str, int], tuple[ContainerSpec, asyncio.Task[ContainerId]]
        ] = {}

    async def create(self, pod_id: str, spec: ContainerSpec) -> ContainerId:
        """Make a container that can be started; no process yet.

        Raises: NotFound (pod or image), WrongState, AlreadyExists, InvalidRequest.
        """
        pod = self._check_ready(pod_id)
        key = (pod.id, spec.metadata.name, spec.metadata.attempt)
        if key not in self._creating:
            existing = self._catalogue.container_named(*key)
            if existing is not None:
                return _same_container(existing, spec)
            task = asyncio.create_task(self._create(pod, spec))
            self._creating[key] = spec, task
            task.add_done_callback(lambda _: self._creating.pop(key))
        creating_spec, task = self._creating[key]
        if creating_spec != spec:
            raise AlreadyExists(f"container {key[1:]} is being made with another config")
        # The caller may hang up; its retry joins the task.
        return await asyncio.shield(task)

    async def start(self, container_id: str) -> None:
        """Start a created container; it executes when this returns.

        A failure is a fact too: the container ends with reason StartError.
        """
        record = self._catalogue.container(container_id)
        async with self._endings.lock(record.id):
            record = self._catalogue.container(record.id)
            if record.state is not ContainerState.CREATED:
                raise WrongState(f"container {record.id} is {record.state.name}, not CREATED")
            self._check_ready(record.pod_id)
            timeline = Timeline("StartContainer")
            try:
                started = await self._spawn(record, timeline)
            except PycriError as error:
                await self._record_failed_start(record, error)
                raise
            await self._record_started(record, started, timeline)
            await run_poststart(record, self._layout, started.pid)

    async def stop(self, container_id: str, timeout_s: int) -> None:
        """Send the stop signal, wait, kill; unknown or not running is fine.

        timeout_s: 0 kills at once. A later call with less patience shortens an earlier wait.
        """
        try:
            record = self._catalogue.container(container_id)
        except NotFound:
            return
        if record.state is ContainerState.RUNNING:
            await self._endings.stop(record, timeout_s)

    async def stop_for_good(self, container_id: ContainerId) -> None:
        """Kill a container of a stopped pod; a start under way is waited for, and ended too."""
        async with self._endings.lock(container_id):
            pass
        await self.stop(container_id, 0)

    async def remove(self, container_id: str) -> None:
        """Kill the container if it runs, and remove all of it but its log; unknown is fine."""
        try:
            record = self._catalogue.container(container_id)
        except NotFound:
            return
        await self.stop(record.id, 0)
        async with self._endings.lock(record.id):
            if not self._catalogue.has_container(record.id):
                # Another call has removed it meanwhile.
                return
            state = self._catalogue.container(record.id).state
            if state is ContainerState.RUNNING:
                raise WrongState(f"container {record.id} was started while it was being removed")
            if state is ContainerState.CREATED:
                # A start that was cut short with its daemon or its spawner left the group.
                await self._endings.clean_up(record)
            await self._spawner.forget(TaskId(record.id))
            await asyncio.to_thread(self._layout.remove_container, record.id)
            await self._catalogue.remove_container(record.id)
        self._endings.forget(record.id)
        self._planner.forget(record.id)
        # Those of an image that was removed while this container had it.
        await self._planner.collect_layers()

    async def reopen_log(self, container_id: str) -> None:
        """Open the log file anew, after the kubelet has renamed it. Raises WrongState."""
        record = self._catalogue.container(container_id)
        if record.state is not ContainerState.RUNNING:
            raise WrongState(f"container {record.id} is not running")
        await self._spawner.reopen_log(TaskId(record.id))

    def _check_ready(self, pod_id: str) -> PodRecord:
        pod = self._catalogue.pod(pod_id)
        if pod.state is not PodState.READY:
            raise WrongState(f"pod sandbox {pod.id} is not ready")
        return pod

    async def _create(self, pod: PodRecord, spec: ContainerSpec) -> ContainerId:
        timeline = Timeline("CreateContainer")
        with ExitStack() as held:
            with timeline.stage("plan"):
                image = self._planner.find_image(spec)
                additions = self._planner.find_additions(spec)
                # Until the record says that they are in use.
                held.enter_context(self._planner.holding(image, additions))
                record, bundle = self._plan_record(pod, spec, image, additions)
                await _check_sources(spec, additions.device_edits)
            await self._make(record, pod, bundle, timeline)
        return record.id

    def _plan_record(
        self, pod: PodRecord, spec: ContainerSpec, image: Image, additions: Additions
    ) -> tuple[ContainerRecord, bytes | None]:
        """Return the record and the config of the bundle.

        The plan is made again at the start; made here too, a bad request fails early.
        """
        container_id = ContainerId(secrets.token_hex(32))
        inputs = self._planner.inputs(container_id, pod, spec, image, additions)
        plan = plan_container(inputs)
        cgroup = container_cgroup(inputs)
        record = ContainerRecord(
            id=container_id,
            pod_id=pod.id,
            spec=spec,
            image_id=image.id,
            image_layers=image.layers,
            image_config=image.config,
            volume_images=additions.volume_images,
            device_edits=additions.device_edits,
            seccomp_text=additions.seccomp_text,
            user=plan.process.user,
            stop_signal=stop_signal(spec, image.config),
            cgroup=cgroup,
            log_path=container_log_path(pod.spec, spec),
            created_ns=time.time_ns(),
        )
        return record, render_bundle(plan, cgroup)

    async def _make(
        self, record: ContainerRecord, pod: PodRecord, bundle: bytes | None, timeline: Timeline
    ) -> None:
        async with Rollback() as rollback:
            rollback.push("record", lambda: self._catalogue.remove_container(record.id))
            with timeline.stage("intent"):
                await self._catalogue.add_container(record)
            self._check_ready(pod.id)
            rollback.push("folders", lambda: self._remove_folders(record.id))
            with timeline.stage("folders"):
                user_ids = pod.spec.namespaces.user
                await asyncio.to_thread(self._layout.make_container, record.id, user_ids, bundle)
            self._catalogue.note_timeline(record.id, timeline.stages())

    async def _remove_folders(self, container_id: ContainerId) -> None:
        await asyncio.to_thread(self._layout.remove_container, container_id)

    async def _spawn(self, record: ContainerRecord, timeline: Timeline) -> TaskStarted:
        with timeline.stage("plan"):
            plan = self._planner.plan(record)
            await _check_sources(record.spec, record.device_edits)
        asked_ns = time.monotonic_ns()
        started = await self._spawner.start_container(plan)
        timeline.add_marks(asked_ns, started.marks)
        return started

    async def _record_started(
        self, record: ContainerRecord, started: TaskStarted, timeline: Timeline
    ) -> None:
        stages = (*record.timeline, *timeline.stages())
        await self._catalogue.change_container(
            record.id,
            lambda old: with_facts(
                old,
                started_ns=started.started_ns,
                pid=started.pid,
                pid_start_time=started.start_time,
                timeline=stages,
            ),
        )

    async def _record_failed_start(self, record: ContainerRecord, error: PycriError) -> None:
        await self._endings.clean_up(record)
        now_ns = time.time_ns()
        await self._catalogue.change_container(
            record.id,
            lambda old: with_facts(
                old,
                started_ns=None,
                finished_ns=now_ns,
                exit_code=START_FAILED_EXIT_CODE,
                reason="StartError",
                message=str(error),
            ),
        )


async def _check_sources(spec: ContainerSpec, edits: DeviceEdits) -> None:
    # In a thread, since a look at a dead network volume blocks; others pay nothing for it.
    if mounts := propagating_mounts(spec, edits):
        await asyncio.to_thread(check_propagation, mounts)


def _same_container(existing: ContainerRecord, spec: ContainerSpec) -> ContainerId:
    """Hand a retry the container of the same metadata, if it is what was asked for."""
    if existing.spec != spec:
        name = f"{spec.metadata.name} (attempt {spec.metadata.attempt})"
        raise AlreadyExists(f"container {name} exists with another config: {existing.id}")
    return existing.id
