# SPDX-License-Identifier: Apache-2.0
"""The daemon: the only place that builds and connects the parts.

Order of start: the front (in `cli/serve.py`), lock, host facts, spawner (before there are threads),
database, images, network, recovery, then the CRI socket, then the readiness line. Stop is the
reverse; the spawner, the monitor and all containers go on.
"""

import asyncio
import contextlib
import dataclasses
import errno
import fcntl
import gc
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from pycri.config import ImageSettings, Settings, TracingSettings
from pycri.errors import InvalidSettings, Unavailable, WrongState
from pycri.images.admission import Admission, Verifiers
from pycri.images.manifest import host_platform
from pycri.images.policy import ImagePolicy
from pycri.images.reference import NameDefaults
from pycri.images.registry import RegistryClient
from pycri.images.store import ImageRules, ImageStore
from pycri.kernel.features import probe_host, read_cpu_flags
from pycri.kernel.priority import go_first
from pycri.logs import Log
from pycri.model.host import HostFacts
from pycri.model.ids import Digest
from pycri.network.choice import make_pod_network
from pycri.network.interface import PodNetwork
from pycri.pods.apparmor import load_default_profile
from pycri.pods.catalogue import Catalogue, Mirror
from pycri.pods.containers import Containers
from pycri.pods.endings import Endings
from pycri.pods.events import Events
from pycri.pods.execs import Execs
from pycri.pods.foundation import Foundation
from pycri.pods.groups import Groups
from pycri.pods.layout import Layout
from pycri.pods.metrics import Metrics
from pycri.pods.networks import Networks
from pycri.pods.node import Node
from pycri.pods.planning import Planner
from pycri.pods.ready_networks import ReadyNetworks
from pycri.pods.recovery import Recovery
from pycri.pods.sandboxes import Sandboxes
from pycri.pods.selinux import label_images
from pycri.pods.sessions import StreamSessions
from pycri.pods.stats import Stats
from pycri.pods.timeline import Timeline
from pycri.pods.updates import Updates
from pycri.pods.usage import LayerUsage
from pycri.pods.watch import ExitWatch
from pycri.runtimes import launch
from pycri.runtimes.client import SpawnerClient
from pycri.state.database import Database
from pycri.streaming.server import StreamingServer

if TYPE_CHECKING:
    from pycri.cri.account import Observer
    from pycri.cri.front_client import FrontClient
    from pycri.tracing import Tracing

_log = Log("daemon")
_BLOCKING_CALLS_AT_ONCE = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """The connected parts that calls reach."""

    sandboxes: Sandboxes
    containers: Containers
    updates: Updates
    execs: Execs
    streaming: StreamingServer
    images: ImageStore
    node: Node
    stats: Stats
    metrics: Metrics
    events: Events
    layers: LayerUsage
    network: PodNetwork
    networks: Networks
    ready_networks: ReadyNetworks
    spawner: SpawnerClient
    recovery: Recovery
    catalogue: Catalogue


def run(settings: Settings, front: "FrontClient") -> None:
    """Serve CRI until SIGTERM or SIGINT. Raises: WrongState if another daemon holds the lock."""
    with _locked(settings):
        host = probe_host()
        # A fork, so it comes before there are threads.
        spawner_socket = launch.connect(settings) or launch.start(settings, host)
        asyncio.run(_serve(settings, host, spawner_socket, front))


def wipe(settings: Settings) -> None:
    """End every pod, the spawner and the monitor; remove bridge, rules and run folder.

    Images stay. Raises WrongState while a daemon serves.
    """
    with _locked(settings):
        host = probe_host()
        spawner_socket = launch.connect(settings) or launch.start(settings, host)
        asyncio.run(_wipe(settings, host, spawner_socket))
        Groups(host).remove_if_empty(settings.cgroup_parent)
        _remove_run_dir(settings.run_dir)


def _remove_run_dir(path: str) -> None:
    """Remove the folder with all that is in it; where something is mounted on it, it stays."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        if error.errno != errno.EBUSY or error.filename != path:
            raise


@contextlib.asynccontextmanager
async def _application(
    settings: Settings,
    host: HostFacts,
    spawner_socket: socket.socket,
    mirrors: Sequence[Mirror] = (),
) -> AsyncIterator[Application]:
    """Build, connect and recover everything; close it at the end."""
    async with contextlib.AsyncExitStack() as stack:
        spawner = SpawnerClient(settings, host)
        stack.push_async_callback(spawner.close)
        database = await Database.open(Path(settings.database_path))
        stack.push_async_callback(database.close)
        registry = RegistryClient(
            Path(settings.images.certs_dir),
            Path(settings.images.credentials_file),
            progress_timeout_s=settings.images.progress_timeout_s,
        )
        stack.push_async_callback(registry.close)
        if host.selinux:
            label_images(settings.images_dir)
        events = Events()
        catalogue = Catalogue(database, events.publish, mirrors)
        foundation = Foundation(
            settings=settings,
            host=host,
            catalogue=catalogue,
            events=events,
            spawner=spawner,
            exits=ExitWatch(),
            layout=Layout(settings),
            groups=Groups(host),
        )
        network = make_pod_network(settings, database)
        stack.push_async_callback(network.close)
        images = _image_store(foundation, database, registry)
        await catalogue.load()
        await images.open()
        stack.push_async_callback(images.close)
        yield await _connect(foundation, database, images, network, spawner_socket)


def _image_store(
    foundation: Foundation, database: Database, registry: RegistryClient
) -> ImageStore:
    catalogue = foundation.catalogue

    def layers_in_use() -> frozenset[Digest]:
        return frozenset(layer for c in catalogue.containers() for layer in c.layers_in_use)

    return ImageStore(
        Path(foundation.settings.images_dir),
        database,
        platform=host_platform(os.uname().machine, read_cpu_flags()),
        registry=registry,
        rules=_image_rules(foundation.settings.images),
        layers_in_use=layers_in_use,
    )


def _image_rules(settings: ImageSettings) -> ImageRules:
    policy = settings.policy
    verifiers = Verifiers(
        Path(policy.verifier_dir), most=policy.max_verifiers, timeout_s=policy.verifier_timeout_s
    )
    return ImageRules(
        admission=Admission(ImagePolicy(policy.rules), verifiers),
        defaults=NameDefaults(prefix=settings.default_prefix, aliases=settings.aliases),
        pinned=settings.pinned,
    )


async def _connect(
    foundation: Foundation,
    database: Database,
    images: ImageStore,
    network: PodNetwork,
    spawner_socket: socket.socket,
) -> Application:
    spawner = foundation.spawner
    endings = Endings(foundation)
    planner = Planner(foundation, images)
    containers = Containers(foundation, planner, endings)
    ready_networks = ReadyNetworks(foundation, network)
    sandboxes = Sandboxes(foundation, network, ready_networks, containers)
    recovery = Recovery(foundation, sandboxes, endings, network, ready_networks)
    spawner.on_exit = recovery.task_ended
    spawner.on_replaced = recovery.compare_tasks
    await spawner.attach(spawner_socket)
    try:
        await network.start()
    except Unavailable as error:
        # Pods on the host's network still work; Status says what is wrong.
        _log.error("network not ready", error=str(error))
    if foundation.host.apparmor:
        try:
            await load_default_profile()
        except Unavailable as error:
            _log.error("containers run without AppArmor", error=str(error))
    await recovery.recover(database)
    layers = LayerUsage(foundation.catalogue, foundation.layout)
    execs = Execs(foundation, planner)
    return Application(
        sandboxes=sandboxes,
        containers=containers,
        updates=Updates(foundation, planner, endings),
        execs=execs,
        streaming=StreamingServer(foundation.settings.streaming, StreamSessions(foundation, execs)),
        images=images,
        node=Node(foundation, network, ready_networks),
        stats=Stats(foundation, layers),
        metrics=Metrics(foundation, layers),
        events=foundation.events,
        layers=layers,
        network=network,
        networks=Networks(foundation, network),
        ready_networks=ready_networks,
        spawner=spawner,
        recovery=recovery,
        catalogue=foundation.catalogue,
    )


async def _serve(
    settings: Settings, host: HostFacts, spawner_socket: socket.socket, front: "FrontClient"
) -> None:
    from pycri.cri.image_service import ImageService
    from pycri.cri.node_service import NodeService
    from pycri.cri.runtime_service import RuntimeService
    from pycri.cri.server import Services, serving

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # For calls that may block on the disk or on a dying process; the default, by cores, is too few.
    blocking = ThreadPoolExecutor(_BLOCKING_CALLS_AT_ONCE, "blocking", initializer=go_first)
    loop.set_default_executor(blocking)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    front.when_lost = lambda: loop.call_soon_threadsafe(stop.set)
    async with _application(settings, host, spawner_socket, [front]) as app:
        runtime = RuntimeService(
            records=app.catalogue,
            sandboxes=app.sandboxes,
            containers=app.containers,
            updates=app.updates,
            execs=app.execs,
            streaming=app.streaming,
            node=app.node,
            observed=app,
        )
        services = Services(
            runtime, ImageService(app.images, app.layers), NodeService(app.images, app.networks)
        )
        with _watching(settings, app) as observers:
            async with (
                _streaming(app.streaming),
                serving(settings.socket_path, front, services, observers=observers),
            ):
                await _run_until(stop, app, settings)
    if front.is_lost:
        raise Unavailable("the process that talks to clients has ended")


async def _run_until(stop: asyncio.Event, app: Application, settings: Settings) -> None:
    """Do what is done now and then, until it is time to stop; then end what calls may wait for."""
    watches = (app.recovery.watch(), app.stats.watch(), app.layers.watch())
    watching = [asyncio.create_task(watch) for watch in watches]
    app.ready_networks.start()
    # What is there by now stays: to look through it again and again would stop calls for 50 ms.
    gc.collect()
    gc.freeze()
    if not go_first():
        _log.info("clients wait for their turn on a busy machine: no real-time priority")
    _notify("READY=1")
    _log.info("ready", socket=settings.socket_path, spawner=app.spawner.pid)
    await stop.wait()
    _notify("STOPPING=1")
    _log.info("stopping")
    for task in watching:
        task.cancel()
    app.events.close()
    app.layers.close()
    app.stats.close()
    app.metrics.close()
    await app.ready_networks.close()


@contextlib.contextmanager
def _watching(settings: Settings, app: Application) -> Iterator[list["Observer"]]:
    """Export metrics and traces, if asked for; yield who takes note of calls.

    Imported here: both cost memory, and most nodes have no use for them.
    """
    observers: list[Observer] = []
    with contextlib.ExitStack() as stack:
        if settings.prometheus.address:
            from pycri.exporter import Exporter, Sources

            exporter = Exporter()
            app.events.observe(exporter.observe_event)
            sources = Sources(
                catalogue=app.catalogue,
                images=app.images,
                node=app.node,
                recovery=app.recovery,
                ready_networks=app.ready_networks,
                event_readers=app.events.readers,
            )
            stack.callback(exporter.start(settings.prometheus.address, sources))
            observers.append(exporter)
        if settings.tracing.endpoint:
            observers.append(tracing := _tracing(settings.tracing))
            stack.callback(tracing.close)
            Timeline.observers.append(tracing.observe_stages)
        yield observers


def _tracing(settings: TracingSettings) -> "Tracing":
    try:
        from pycri.tracing import Tracing
    except ModuleNotFoundError as error:
        reason = f"tracing.endpoint: {error}; install pycri[tracing]"
        raise InvalidSettings(reason) from error
    return Tracing(settings.endpoint, settings.sampling_per_million)


@contextlib.asynccontextmanager
async def _streaming(server: StreamingServer) -> AsyncIterator[None]:
    """Serve sessions until the block ends."""
    await server.start()
    try:
        yield
    finally:
        await server.close()


async def _wipe(settings: Settings, host: HostFacts, spawner_socket: socket.socket) -> None:
    async with _application(settings, host, spawner_socket) as app:
        for pod in app.catalogue.pods():
            await app.sandboxes.remove(pod.id)
        await app.network.remove()
        await app.spawner.quit()


@contextlib.contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """Hold the lock of the state folder: two daemons on it would undo each other's work."""
    # Records hold the environments of containers, layers hold set-user-ID programs.
    os.makedirs(settings.state_dir, mode=0o700, exist_ok=True)
    os.makedirs(settings.run_dir, mode=0o711, exist_ok=True)
    with open(f"{settings.state_dir}/lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WrongState(f"another pycri uses {settings.state_dir}") from error
        yield


def _notify(state: str) -> None:
    """Tell the service manager, if there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        name = "\0" + address[1:] if address.startswith("@") else address
        sock.sendto(state.encode(), name)
