# SPDX-License-Identifier: Apache-2.0
"""What a pod's network is: its interfaces and the addresses they were given."""

import msgspec


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface of a pod.

    name: inside the pod, "eth0". mac: as text, "" if it was not told.
    addresses: with their prefix lengths, "10.88.0.2/16"; the one to be shown first comes first.
    host_interface: the other end, in the host's namespace; "" if there is none, or it is not known.
    """

    name: str
    mac: str = ""
    addresses: tuple[str, ...] = ()
    host_interface: str = ""


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A pod's network as it was made. interfaces: without lo; the pod's main one comes first."""

    interfaces: tuple[Interface, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that the pod is known by, without prefix lengths, its main one first."""
        return tuple(
            address.partition("/")[0]
            for interface in self.interfaces
            for address in interface.addresses
        )
