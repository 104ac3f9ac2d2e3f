# SPDX-License-Identifier: Apache-2.0
"""The node as a whole: is it ready, which range do its pods live in."""

from pycri.model.host import Condition
from pycri.network.interface import PodNetwork
from pycri.pods.foundation import Foundation
from pycri.pods.ready_networks import ReadyNetworks


class Node:
    """What Status and UpdateRuntimeConfig are about. Answers from memory."""

    def __init__(
        self, foundation: Foundation, network: PodNetwork, ready_networks: ReadyNetworks
    ) -> None:
        self._spawner = foundation.spawner
        self._network = network
        self._ready_networks = ready_networks
        self._host = foundation.host

    def conditions(self) -> list[Condition]:
        """Return RuntimeReady and NetworkReady (CRI RuntimeStatus)."""
        network = self._network.problem()
        return [
            _condition("RuntimeReady", self._spawner.problem(), "SpawnerLost"),
            _condition("NetworkReady", network, "NetworkPluginNotReady"),
        ]

    def user_namespaces(self) -> bool:
        """Tell whether a pod may have a user namespace of its own."""
        return self._host.user_namespaces

    async def set_pod_cidr(self, cidr: str) -> None:
        """Use another address range for new pods; "" changes nothing."""
        await self._network.set_pod_cidr(cidr)
        self._ready_networks.look()

    def verbose(self) -> dict[str, str]:
        """Return what a verbose Status adds."""
        return {
            "spawner_pid": str(self._spawner.pid),
            "monitor_pid": str(self._spawner.monitor_pid),
            **self._network.describe(),
            "ready_networks": str(self._ready_networks.count),
        }


def _condition(kind: str, problem: str | None, reason: str) -> Condition:
    if problem is None:
        return Condition(type=kind, status=True)
    return Condition(type=kind, status=False, reason=reason, message=problem)
