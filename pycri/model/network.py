# SPDX-License-Identifier: Apache-2.0
"""What a pod's network is: the address it was given and how it is attached."""

import msgspec


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One pod attached to the built-in bridge.

    address, gateway: textual addresses without prefix; prefix_length of the pod range.
    host_interface: the veth end on the bridge, at most 15 characters.
    """

    address: str
    prefix_length: int
    gateway: str
    host_interface: str
