# SPDX-License-Identifier: Apache-2.0
"""The files that give a pod its names: /etc/hostname, /etc/hosts and /etc/resolv.conf.

Text only; the daemon writes them and PodPaths says where. A kubelet mounts its own /etc/hosts over
ours; these are what `crictl` and others who bring none get.
"""

from pycri.errors import InvalidRequest
from pycri.model.host import HostFacts
from pycri.model.pod import DnsConfig, PodSpec

_LOCAL_HOSTS = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def pod_hostname(spec: PodSpec, host: HostFacts) -> str:
    """Return the name the pod's processes see: its own, or the node's with the host's network."""
    return spec.hostname or host.hostname


def render_hostname(hostname: str) -> str:
    """Return the content of hostname(5)."""
    return f"{hostname}\n"


def render_hosts(hostname: str, addresses: tuple[str, ...] = ()) -> str:
    """Return the content of hosts(5): the local names, and the pod's name at its addresses."""
    return _LOCAL_HOSTS + "".join(f"{address}\t{hostname}\n" for address in addresses)


def render_resolv_conf(dns: DnsConfig) -> str:
    """Return the content of resolv.conf(5); empty if `dns` asks for nothing.

    Raises: InvalidRequest for an entry that is empty or would break its line.
    """
    for field in ("servers", "searches", "options"):
        for index, entry in enumerate(getattr(dns, field)):
            if entry.split() != [entry]:
                raise InvalidRequest(
                    f"config.dns_config.{field}[{index}]", f"{entry!r} is not a single word"
                )
    lines = [f"search {' '.join(dns.searches)}\n"] if dns.searches else []
    lines += [f"nameserver {server}\n" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}\n"] if dns.options else []
    return "".join(lines)
