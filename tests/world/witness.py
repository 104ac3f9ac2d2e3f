# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of a network namespace, by another reader than ours: pyroute2's only user.

Our own messages are made and read by pycri/network/netlink.py, so a mistake there could hide itself
from a test that reads by it. pyroute2 has its own tables of the kernel's headers (decision 0029).
"""

import threading
from typing import Any

import msgspec
from pyroute2 import IPRoute

_UP, _RUNNING = 0x1, 0x40
_PERMANENT, _NODAD = 0x80, 0x02
_MAIN = 254


class SeenLink(msgspec.Struct, frozen=True, kw_only=True):
    """An interface. master: a name, or "". hairpin: of a bridge's port, else None."""

    kind: str
    mac: str
    mtu: int
    up: bool
    running: bool
    master: str = ""
    hairpin: bool | None = None


class SeenQueue(msgspec.Struct, frozen=True, kw_only=True):
    """The token bucket that an interface sends through; bytes a second, up to 32 bits; bytes."""

    rate: int
    limit: int


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace. addresses: "10.0.0.2/24" by interface; routes: "default via 10.0.0.1 dev eth0".

    broadcasts: the broadcast addresses of all. settled: whether no address waits to be found
    unique, or has failed to be.
    """

    links: dict[str, SeenLink]
    addresses: dict[str, set[str]]
    routes: set[str]
    queues: dict[str, SeenQueue]
    broadcasts: set[str]
    settled: bool


def look() -> Seen:
    """Return what is in the network namespace of the calling thread."""
    found: list[Seen] = []
    # pyroute2 has an event loop of its own, which must not meet that of the test; a thread is in
    # the namespaces of the one that starts it.
    thread = threading.Thread(target=lambda: found.append(_look()))
    thread.start()
    thread.join()
    return found[0]


def _look() -> Seen:
    with IPRoute() as kernel:
        links = list(kernel.get_links())
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in links}
        addresses: dict[str, set[str]] = {}
        broadcasts: set[str] = set()
        settled = True
        for entry in kernel.get_addr():
            address = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
            shown = f"{address}/{entry['prefixlen']}"
            addresses.setdefault(names[entry["index"]], set()).add(shown)
            broadcasts |= {found} if (found := entry.get_attr("IFA_BROADCAST")) else set()
            settled = settled and not entry.get_attr("IFA_FLAGS") & ~(_PERMANENT | _NODAD)
        routes = {_route(route, names) for route in kernel.get_routes(table=_MAIN)}
        queues = {
            names[queue["index"]]: _queue(queue)
            for queue in kernel.get_qdiscs()
            if queue.get_attr("TCA_KIND") == "tbf"
        }
        return Seen(
            links={names[link["index"]]: _link(link, names) for link in links},
            addresses=addresses,
            routes=routes,
            queues=queues,
            broadcasts=broadcasts,
            settled=settled,
        )


def _link(link: Any, names: dict[int, str]) -> SeenLink:
    info = link.get_attr("IFLA_LINKINFO")
    port = info.get_attr("IFLA_INFO_SLAVE_DATA") if info else None
    return SeenLink(
        kind=info.get_attr("IFLA_INFO_KIND") if info else "",
        mac=link.get_attr("IFLA_ADDRESS"),
        mtu=link.get_attr("IFLA_MTU"),
        up=bool(link["flags"] & _UP),
        running=bool(link["flags"] & _RUNNING),
        master=names.get(link.get_attr("IFLA_MASTER"), ""),
        hairpin=bool(port.get_attr("IFLA_BRPORT_MODE")) if port else None,
    )


def _route(route: Any, names: dict[int, str]) -> str:
    destination = route.get_attr("RTA_DST")
    words = [f"{destination}/{route['dst_len']}" if destination else "default"]
    if gateway := route.get_attr("RTA_GATEWAY"):
        words += ["via", gateway]
    if interface := names.get(route.get_attr("RTA_OIF")):
        words += ["dev", interface]
    return " ".join(words)


def _queue(queue: Any) -> SeenQueue:
    options = queue.get_attr("TCA_OPTIONS")
    parameters = options.get_attr("TCA_TBF_PARMS")
    return SeenQueue(rate=parameters["rate"], limit=parameters["limit"])
