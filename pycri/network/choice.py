# SPDX-License-Identifier: Apache-2.0
"""Which network pods get: the built-in one, CNI, or what the node turns out to have ("auto").

"auto" is built-in until a configuration stands in the CNI folder; from the first that was seen,
good or bad, it is CNI for good, also after a restart, until `pycri wipe`. It does not go back when
the folder is empty: an agent that takes its configuration away while it is replaced means that no
pod is to start meanwhile, and not that pods are to start on another network.

A pod stays on the network that it was attached to.
"""

import asyncio
from collections.abc import Callable

from pycri.config import NetworkSettings, Settings
from pycri.errors import Unavailable
from pycri.model.ids import PodId
from pycri.model.network import Attachment
from pycri.model.pod import PodSpec
from pycri.network.bridge import BridgeNetwork
from pycri.network.cni.conflist import parse_folder
from pycri.network.cni.folder import read_files
from pycri.network.cni.network import (
    CniNetwork,
    choose_networks,
    describe_absence,
    interface_name,
)
from pycri.network.cni.operations import Operations
from pycri.network.hostports import host_ports_of, name_of
from pycri.network.interface import PodNetwork, Preparation
from pycri.state.database import Database
from pycri.state.records import delete_meta, load_meta, save_meta

CHOSEN_KEY = "network_chosen"


def make_pod_network(settings: Settings, database: Database) -> PodNetwork:
    """Return the network that `network.kind` names; nothing is done before its `start`."""
    builtin = BridgeNetwork(settings.network, database)
    if settings.network.kind == "builtin":
        return builtin
    cni = CniNetwork(settings.network.cni, database, mark=settings.run_dir)
    return ChosenNetwork(builtin, cni, database, only_cni=settings.network.kind == "cni")


def survey(settings: NetworkSettings, find_fault: Callable[[], str]) -> tuple[str, str]:
    """Return which network pods would get now, in words, and what is wrong with it, or "".

    find_fault: of the built-in network (`fitness.find_fault`); asked only where it is that one.
    """
    conf_dir = settings.cni.conf_dir
    files = () if settings.kind == "builtin" else read_files(conf_dir)
    if settings.kind != "cni" and not files:
        return f"built-in: bridge {settings.bridge}, range {settings.range}", find_fault()
    folder = parse_folder(files)
    if folder.default is None:
        return "CNI", describe_absence(folder, conf_dir)
    plugins = ", ".join(plugin.type for plugin in folder.default.plugins)
    text = f"CNI: {folder.default.name} of {conf_dir}, by {plugins}"
    operations = Operations(settings.cni.bin_dirs, settings.cni.timeout_s, mark="")
    return text, operations.find_missing(folder.default) or ""


def preview_attachment(settings: NetworkSettings, spec: PodSpec) -> str:
    """Return the steps of attaching a pod, as the settings and the CNI folder are now."""
    files = () if settings.kind == "builtin" else read_files(settings.cni.conf_dir)
    if settings.kind != "cni" and not files:
        ports = [f"host port {name_of(p)} -> {p.container_port}\n" for p in host_ports_of(spec)]
        attached = f"attach to {settings.bridge}, with a free address of {settings.range}\n"
        return attached + "".join(ports)
    try:
        networks = choose_networks(parse_folder(files), spec, settings.cni.conf_dir)
    except Unavailable as error:
        return f"# {error}\n"
    return "".join(
        f"CNI ADD {interface_name(number)}: plugin {plugin.type} of network {network.name}\n"
        for number, network in enumerate(networks)
        for plugin in network.plugins
    )


class ChosenNetwork:
    """A `PodNetwork` (network/interface.py) that is one of two; both let go of pods they have."""

    def __init__(
        self, builtin: BridgeNetwork, cni: CniNetwork, database: Database, *, only_cni: bool
    ) -> None:
        """Takes both networks."""
        self._builtin = builtin
        self._cni = cni
        self._database = database
        self._chosen = only_cni
        self._saved = only_cni

    def problem(self) -> str | None:
        if self._is_cni():
            return self._cni.problem()
        self._cni.look_soon()
        return self._builtin.problem()

    def describe(self) -> dict[str, str]:
        return (self._cni if self._is_cni() else self._builtin).describe()

    async def start(self) -> None:
        await self._cni.clean_up()
        if not self._saved:
            saved = await self._database.transact(lambda c: load_meta(c, CHOSEN_KEY))
            self._chosen = self._saved = saved == "cni"
        await self._choose()
        await (self._cni if self._is_cni() else self._builtin).start()

    async def set_pod_cidr(self, cidr: str) -> None:
        await self._choose()
        await (self._cni if self._is_cni() else self._builtin).set_pod_cidr(cidr)

    async def attach(
        self, pod_id: PodId, spec: PodSpec, netns_path: str, netlink_fd: int
    ) -> Attachment:
        network: PodNetwork = self._builtin
        if not self._builtin.has_prepared(pod_id):
            await self._choose()
            network = self._cni if self._is_cni() else self._builtin
        return await network.attach(pod_id, spec, netns_path, netlink_fd)

    async def preparing(self, spec: PodSpec | None = None) -> Preparation | None:
        await self._choose()
        return None if self._is_cni() else await self._builtin.preparing(spec)

    async def detach(self, pod_id: PodId) -> None:
        await asyncio.gather(self._builtin.detach(pod_id), self._cni.detach(pod_id))

    async def reconcile(self, pods: frozenset[PodId]) -> None:
        await self._choose()
        await self._cni.reconcile(pods)
        await self._builtin.reconcile(pods)

    async def check(self) -> list[str]:
        found = await self._cni.check()
        if not self._is_cni():
            return await self._builtin.check() + found
        return [problem, *found] if (problem := self.problem()) is not None else found

    async def remove(self) -> None:
        await self._cni.remove()
        await self._builtin.remove()
        await self._database.transact(lambda c: delete_meta(c, CHOSEN_KEY))

    async def close(self) -> None:
        await self._cni.close()
        await self._builtin.close()

    def _is_cni(self) -> bool:
        return self._chosen or self._cni.folder.present

    async def _choose(self) -> None:
        """Look at the folder, and keep what was chosen first."""
        await self._cni.folder.read()
        if self._is_cni() and not self._saved:
            await self._database.transact(lambda c: save_meta(c, CHOSEN_KEY, "cni"))
            self._chosen = self._saved = True
