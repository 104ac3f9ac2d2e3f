# SPDX-License-Identifier: Apache-2.0
"""PodNetwork: what the rest of pycri asks of a network of pods.

    start ──▶ attach(pod) ──▶ detach(pod) ──▶ close        the life of a daemon
                  └── reconcile(pods): at start and every minute, whatever happened meanwhile
    remove                                                  `pycri wipe`

`bridge.py` is the network that is built in. An implementation writes down what it is about to
make before it makes it, so that `detach` and `reconcile` need no more than a pod's id.
"""

from typing import Protocol

from pycri.model.ids import PodId
from pycri.model.network import Attachment
from pycri.model.pod import PodSpec


class PodNetwork(Protocol):
    """The network of all pods but those in the host's namespace."""

    def problem(self) -> str | None:
        """Return why pods cannot be attached (the condition NetworkReady), or None; from memory."""

    async def start(self) -> None:
        """Make the host fit for pods. Idempotent; called again while there is a `problem`.

        Raises: Unavailable with what is wrong, which is then also the `problem`.
        """

    async def set_pod_cidr(self, cidr: str) -> None:
        """Take the addresses of new pods from `cidr` (UpdateRuntimeConfig), also after restarts.

        cidr: "v4", "v6" or both with a comma between them; "" changes nothing.
        Raises: InvalidRequest if a range is bad or in use on this host; Unavailable as `start`.
        """

    async def attach(
        self, pod_id: PodId, spec: PodSpec, netns_path: str, netlink_fd: int
    ) -> Attachment:
        """Give the pod's namespace its interfaces, addresses, routes and host ports, and lo.

        spec: names, annotations, port mappings and parent group are its concern.
        netns_path: the namespace's pin. netlink_fd: a NETLINK_ROUTE socket opened inside; borrowed.
        Raises: InvalidRequest naming the annotation or the port; AlreadyExists for a host port or
            an address that another pod has; OutOfResources; SetupFailed; Unavailable while there
            is a `problem`. A failure leaves nothing behind.
        """

    async def preparing(self, spec: PodSpec | None = None) -> "Preparation | None":
        """Return what makes networks ahead of pods, if one made so now would do for `spec`.

        spec: None asks for a pod that wants nothing in particular. Raises: InvalidRequest.
        """

    async def detach(self, pod_id: PodId) -> None:
        """Undo `attach`. Idempotent; the namespace may be gone, and must be let go of soon after.

        A pod that was never attached is fine. Raises: what keeps it from being undone; the caller
        tries again.
        """

    async def reconcile(self, pods: frozenset[PodId]) -> None:
        """Undo what is left of all pods but `pods`; put right what others changed on the host.

        pods: every pod with a record, also those that are being made or stopped.
        """

    def describe(self) -> dict[str, str]:
        """Return what a verbose Status shows of it, by name; from memory."""

    async def check(self) -> list[str]:
        """Compare what is on record with what is there; return what is not as it is to be."""

    async def remove(self) -> None:
        """Remove all that is ours from the host, for good; absent is fine."""

    async def close(self) -> None:
        """Stop the background work; what the pods need stays. Idempotent."""


class Preparation(Protocol):
    """Networks made before there is a pod to have them: `attach` of the pod then adds the rest.

    Until then they are held under the id that the pod will have, and known to `reconcile`.
    """

    def terms(self) -> str:
        """Return what one made now is like; one made on other terms is of no use any more."""

    async def prepare(self, pod_id: PodId, netns_path: str, netlink_fd: int) -> None:
        """Do for a namespace what `attach` does for a pod that asks for nothing.

        Raises: as `attach`; OutOfResources at once, if no address is free.
        """

    def is_intact(self, pod_id: PodId) -> bool:
        """Tell whether what was prepared is still there, as far as nobody will put it right."""
