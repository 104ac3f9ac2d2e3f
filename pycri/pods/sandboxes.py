# SPDX-License-Identifier: Apache-2.0
"""Pod sandboxes: run, stop, remove.

Run writes the intent, then makes folders, namespaces and network, then records that the pod is
ready; each step names its undo. If an undo fails the record stays, as not ready, so that the
kubelet and the reconciler see it and try again. A retry with the same metadata joins the call
that is under way, or gets the pod it made.
"""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Mapping

from pycri.errors import AlreadyExists, NotFound, OutOfResources, Unavailable
from pycri.kernel.fds import close_all
from pycri.model.ids import PodId, TaskId
from pycri.model.network import Attachment
from pycri.model.pod import PodRecord, PodSpec, PodState
from pycri.network.interface import PodNetwork
from pycri.plan.cgroups import cgroup_path
from pycri.plan.sandbox import plan_sandbox
from pycri.pods.catalogue import with_facts
from pycri.pods.containers import Containers
from pycri.pods.endings import KILL_DEADLINE_S
from pycri.pods.foundation import Foundation
from pycri.pods.ready_networks import ReadyNetwork, ReadyNetworks
from pycri.pods.rollback import Rollback
from pycri.pods.timeline import Timeline
from pycri.state.records import pod_name_key
from pycri.wire.messages import TaskInfo


class Sandboxes:
    """The use cases of pod sandboxes, in the words of the CRI."""

    def __init__(
        self,
        foundation: Foundation,
        network: PodNetwork,
        ready_networks: ReadyNetworks,
        containers: Containers,
    ) -> None:
        self._host = foundation.host
        self._cgroup_parent = foundation.settings.cgroup_parent
        self._catalogue = foundation.catalogue
        self._spawner = foundation.spawner
        self._exits = foundation.exits
        self._layout = foundation.layout
        self._groups = foundation.groups
        self._network = network
        self._ready_networks = ready_networks
        self._containers = containers
        self._running: dict[str, tuple[PodSpec, asyncio.Task[PodId]]] = {}
        self._locks: dict[PodId, asyncio.Lock] = {}

    async def run(self, spec: PodSpec) -> PodId:
        """Make a pod sandbox that is ready when this returns.

        Raises: AlreadyExists for a name in use with another config or by a stopped pod;
            InvalidRequest, SetupFailed, OutOfResources, Unavailable.
        """
        key = pod_name_key(spec.metadata)
        if key not in self._running:
            existing = self._catalogue.pod_named(key)
            if existing is not None and existing.ready_ns is not None:
                return _same_pod(existing, spec)
            task = asyncio.create_task(self._run(spec, existing))
            self._running[key] = spec, task
            task.add_done_callback(lambda _: self._running.pop(key))
        running_spec, task = self._running[key]
        if running_spec != spec:
            raise AlreadyExists(f"pod sandbox {key} is being made with another config")
        # The caller may hang up; its retry joins the task.
        return await asyncio.shield(task)

    async def stop(self, pod_id: str) -> None:
        """Kill the pod's containers and free its network; unknown or stopped is fine."""
        try:
            pod = self._catalogue.pod(pod_id)
        except NotFound:
            return
        async with self._lock(pod.id):
            # Another call may have removed it meanwhile.
            if self._catalogue.has_pod(pod.id):
                await self._stop(self._catalogue.pod(pod.id))

    async def remove(self, pod_id: str) -> None:
        """Stop the pod if need be, remove its containers and all that is left; unknown is fine."""
        try:
            pod = self._catalogue.pod(pod_id)
        except NotFound:
            return
        async with self._lock(pod.id):
            if not self._catalogue.has_pod(pod.id):
                return
            await self._stop(self._catalogue.pod(pod.id))
            for container in self._catalogue.containers_of(pod.id):
                await self._containers.remove(container.id)
            await self._discard(pod)
        self._locks.pop(pod.id, None)

    def lost_init(self, pod: PodRecord, tasks: Mapping[TaskId, TaskInfo]) -> bool:
        """Tell whether a ready pod's init has ended: none of its containers can live then."""
        if pod.state is not PodState.READY or not has_init(pod.spec):
            return False
        task = tasks.get(TaskId(pod.id))
        return task is None or task.exit_code is not None

    async def _run(self, spec: PodSpec, failed: PodRecord | None) -> PodId:
        """failed: an earlier try that could not be undone when it failed; now it has to be."""
        if failed is not None:
            await self.remove(failed.id)
        timeline = Timeline("RunPodSandbox")
        async with self._ready_networks.lent(spec) as ready:
            return await self._make(spec, ready, timeline)

    async def _make(self, spec: PodSpec, ready: ReadyNetwork | None, timeline: Timeline) -> PodId:
        pod_id = ready.pod_id if ready else PodId(secrets.token_hex(32))
        paths = self._layout.pod_paths(pod_id, spec)
        # Planned before anything is made: a bad sysctl leaves no trace.
        plan = plan_sandbox(
            pod_id, spec, paths, self._host, self._cgroup_parent, has_network=ready is not None
        )
        pod = PodRecord(id=pod_id, spec=spec, created_ns=time.time_ns())
        async with Rollback() as rollback:
            rollback.push("record", lambda: self._forget_unless_dirty(pod_id, rollback))
            with timeline.stage("intent"):
                await self._catalogue.add_pod(pod)
            rollback.push("folders, cgroup, init", lambda: self._clean_up(pod))
            with timeline.stage("folders"):
                await asyncio.to_thread(self._layout.make_pod, pod_id, spec, self._host)
            asked_ns = time.monotonic_ns()
            started, netlink_fd = await self._spawner.start_sandbox(plan)
            timeline.add_marks(asked_ns, started.marks)
            rollback.push("network", lambda: self._network.detach(pod_id))
            with timeline.stage("attach"):
                attachment = await self._attach(pod, paths.pins.get("net", ""), ready, netlink_fd)
            with timeline.stage("hosts"):
                attached = with_facts(pod, attachment=attachment)
                await asyncio.to_thread(self._layout.write_hosts, attached, self._host)
            stages, ready_ns = timeline.stages(), time.time_ns()
            await self._catalogue.change_pod(
                pod_id,
                lambda old: with_facts(
                    old, attachment=attachment, ready_ns=ready_ns, timeline=stages
                ),
            )
        return pod_id

    async def _attach(
        self, pod: PodRecord, netns: str, ready: ReadyNetwork | None, netlink_fd: int | None
    ) -> Attachment | None:
        if ready is not None:
            return await self._network.attach(pod.id, pod.spec, netns, ready.netlink_fd)
        if netlink_fd is None:
            return None
        try:
            return await self._network.attach(pod.id, pod.spec, netns, netlink_fd)
        except OutOfResources:
            # No pod is refused for the sake of those that may come.
            if not await self._ready_networks.give_up():
                raise
            return await self._network.attach(pod.id, pod.spec, netns, netlink_fd)
        finally:
            close_all((netlink_fd,))

    async def _forget_unless_dirty(self, pod_id: PodId, rollback: Rollback) -> None:
        if rollback.clean:
            await self._catalogue.remove_pod(pod_id)

    async def _stop(self, pod: PodRecord) -> None:
        if pod.stopped_ns is not None and not self._layout.has_pins(pod.id):
            return
        if pod.stopped_ns is None:
            now_ns = time.time_ns()
            await self._catalogue.change_pod(
                pod.id, lambda record: with_facts(record, stopped_ns=now_ns)
            )
        containers = self._catalogue.containers_of(pod.id)
        await asyncio.gather(*(self._containers.stop_for_good(c.id) for c in containers))
        await self._end_init(pod)
        await self._network.detach(pod.id)
        await asyncio.to_thread(self._layout.remove_pins, pod.id)

    async def _end_init(self, pod: PodRecord) -> None:
        """End the pod's init and wait for it; the kernel then ends all in its pid namespace."""
        task = TaskId(pod.id)
        if not has_init(pod.spec):
            return
        tasks = await self._spawner.list_tasks()
        if task in tasks and tasks[task].exit_code is None:
            ended = self._exits.expect(task)
            await self._spawner.signal(task, signal.SIGKILL)
            try:
                async with asyncio.timeout(KILL_DEADLINE_S):
                    await ended
            except TimeoutError as error:
                raise Unavailable(f"the init of pod sandbox {pod.id} does not end") from error
        elif task not in tasks:  # spawner and monitor died at once, and nobody holds it
            await asyncio.to_thread(self._groups.kill, self._init_group(pod))
        await self._spawner.forget(task)

    async def _clean_up(self, pod: PodRecord) -> None:
        await self._end_init(pod)
        await asyncio.to_thread(self._layout.remove_pins, pod.id)
        await asyncio.to_thread(self._remove_files, pod)

    async def _discard(self, pod: PodRecord) -> None:
        await asyncio.to_thread(self._remove_files, pod)
        await self._catalogue.remove_pod(pod.id)

    def _remove_files(self, pod: PodRecord) -> None:
        leaf = self._init_group(pod)
        # A parent that the caller gave stays the caller's; one of our own goes with the pod.
        self._groups.remove(leaf if pod.spec.cgroup_parent else os.path.dirname(leaf))
        self._layout.remove_pod(pod.id)

    def _init_group(self, pod: PodRecord) -> str:
        return cgroup_path(pod.spec.cgroup_parent, self._cgroup_parent, pod.id, pod.id)

    def _lock(self, pod_id: PodId) -> asyncio.Lock:
        return self._locks.setdefault(pod_id, asyncio.Lock())


def has_init(spec: PodSpec) -> bool:
    """Tell whether the pod has an init of ours: a pid namespace shared by its containers."""
    return spec.namespaces.pid.name == "POD"


def _same_pod(existing: PodRecord, spec: PodSpec) -> PodId:
    """Hand a retry the pod of the same metadata, if it is what was asked for and still ready."""
    key = pod_name_key(spec.metadata)
    if existing.spec != spec:
        raise AlreadyExists(f"pod sandbox {key} exists with another config")
    if existing.state is not PodState.READY:
        raise AlreadyExists(f"pod sandbox {key} exists and is stopped: {existing.id}")
    return existing.id
