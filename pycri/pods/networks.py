# SPDX-License-Identifier: Apache-2.0
"""The networks of all pods, for a person who asks: `pycri network`."""

from collections.abc import Sequence

from pycri.model.pod import PodRecord
from pycri.network.interface import PodNetwork
from pycri.pods.foundation import Foundation


class Networks:
    """What pods have of the network, and whether it is there."""

    def __init__(self, foundation: Foundation, network: PodNetwork) -> None:
        self._catalogue = foundation.catalogue
        self._network = network

    def list(self) -> list[PodRecord]:
        """Return the pods that have a network of their own, stopped ones too; from memory."""
        return [pod for pod in self._catalogue.pods() if pod.attachment is not None]

    async def check(self) -> Sequence[str]:
        """Return what is not as it is to be."""
        return await self._network.check()

    async def collect(self) -> None:
        """Free what no pod has, and put right what others changed."""
        await self._network.reconcile(frozenset(pod.id for pod in self._catalogue.pods()))
