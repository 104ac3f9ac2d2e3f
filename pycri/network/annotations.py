# SPDX-License-Identifier: Apache-2.0
"""What a pod's annotations ask of its network: pure.

kubernetes.io/ingress-bandwidth: 10M      bits a second into the pod, a Kubernetes quantity
kubernetes.io/egress-bandwidth: 1G        out of it
network.pycri/addresses: 10.88.0.50, fd00:88::50      one of each range at most
network.pycri/mac: 02:00:00:00:00:50
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from ipaddress import ip_address
from typing import Final

import msgspec

from pycri.errors import InvalidRequest
from pycri.model.ranges import Address

INGRESS: Final = "kubernetes.io/ingress-bandwidth"
EGRESS: Final = "kubernetes.io/egress-bandwidth"
ADDRESSES: Final = "network.pycri/addresses"
MAC: Final = "network.pycri/mac"

LEAST_BITS, MOST_BITS = 1_000, 10**15
"""The bounds that the kubelet puts on a bandwidth."""

_QUANTITY = re.compile(
    r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:([eE][+-]?[0-9]{1,3})|([numkMGTPE]|[KMGTPE]i)?)"
)
_DECIMAL: Final = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_BINARY: Final = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True):
    """Limits in bits a second; None: no limit."""

    ingress_bits: int | None = None
    egress_bits: int | None = None


def parse_bandwidth(annotations: Mapping[str, str]) -> Bandwidth:
    """Return the limits. Raises: InvalidRequest naming the annotation."""
    return Bandwidth(
        ingress_bits=_bits(annotations, INGRESS), egress_bits=_bits(annotations, EGRESS)
    )


def parse_addresses(annotations: Mapping[str, str]) -> tuple[Address, ...]:
    """Return the addresses that the pod is to have. Raises: InvalidRequest."""
    text = annotations.get(ADDRESSES, "")
    try:
        addresses = tuple(ip_address(part.strip()) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise InvalidRequest(field_of(ADDRESSES), str(error)) from error
    if len({address.version for address in addresses}) != len(addresses):
        raise InvalidRequest(field_of(ADDRESSES), f"{text!r} has two of one family")
    return addresses


def parse_mac(annotations: Mapping[str, str]) -> str:
    """Return the MAC that the pod is to have, in lower case, or "". Raises: InvalidRequest."""
    text = annotations.get(MAC, "").lower()
    if not text:
        return ""
    if not _MAC.fullmatch(text):
        raise InvalidRequest(field_of(MAC), f"{text!r} is not a MAC like 02:00:00:00:00:50")
    if int(text[:2], 16) & 1 or text == "00:00:00:00:00:00":
        raise InvalidRequest(field_of(MAC), f"{text} is not the address of one interface")
    return text


def field_of(annotation: str) -> str:
    """Return the path of an annotation's field."""
    return f"config.annotations[{annotation}]"


def _bits(annotations: Mapping[str, str], name: str) -> int | None:
    text = annotations.get(name)
    if text is None:
        return None
    value = parse_quantity(text)
    if value is None:
        raise InvalidRequest(field_of(name), f"{text!r} is not a quantity like 10M")
    if not LEAST_BITS <= value <= MOST_BITS:
        raise InvalidRequest(field_of(name), f"{text} is not between 1k and 1P bits a second")
    return int(value)


def parse_quantity(text: str) -> Decimal | None:
    """Return the value of a Kubernetes quantity ("10M", "1.5Gi", "1e6"), or None if it is none."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    number, exponent, suffix = match.groups()
    if exponent:
        return Decimal(number + exponent)
    if suffix in _BINARY:
        return Decimal(number) * Decimal(1 << 10 * _BINARY[suffix])
    return Decimal(number).scaleb(3 * _DECIMAL[suffix or ""])
