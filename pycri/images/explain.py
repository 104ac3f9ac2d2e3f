# SPDX-License-Identifier: Apache-2.0
"""What a pull of an image would do: which hosts, with whose rights and which TLS, and why.

Made of the same functions as a pull, and of no request to a registry; a credential helper is asked,
as a pull would. No secret gets in here: of headers only the names, of rights only who.
"""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from pycri.errors import PycriError
from pycri.images.certs import TlsContexts, read_hosts
from pycri.images.credentials import node_credentials
from pycri.images.hosts import RegistryHost
from pycri.images.reference import Reference


class HostExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """One host that would be asked. problems: what would keep a pull from using it."""

    url: str
    role: str
    asked_for: str
    tls: str
    credentials: str
    headers: tuple[str, ...] = ()
    dial_timeout_s: float
    proxy: str = ""
    problems: tuple[str, ...] = ()


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """All hosts of an image, in the order in which they are asked."""

    image: str
    registry: str
    described_by: str
    hosts: tuple[HostExplanation, ...]


async def explain(reference: Reference, certs_dir: Path, credentials_file: Path) -> Explanation:
    """Return what a pull of `reference` would do. Raises: InvalidSettings, naming file and key."""
    found = await asyncio.to_thread(read_hosts, certs_dir, reference.host)
    described_by = found.source or f"nothing in {certs_dir}: the registry itself is asked"
    hosts = [
        await _explain_host(host, found.source, credentials_file, reference.path)
        for host in found.hosts
    ]
    return Explanation(
        image=str(reference),
        registry=reference.host,
        described_by=described_by,
        hosts=tuple(hosts),
    )


async def _explain_host(
    host: RegistryHost, source: str, credentials_file: Path, repository: str
) -> HostExplanation:
    problems = []
    try:
        await asyncio.to_thread(TlsContexts().context, host)
    except PycriError as error:
        problems.append(str(error))
    try:
        found = await node_credentials(credentials_file, host, repository)
        credentials = str(found) if found.source else "none of the node's"
    except PycriError as error:
        credentials = "none of the node's"
        problems.append(str(error))
    return HostExplanation(
        url=host.url,
        role=_role(host),
        asked_for=_asked_for(host),
        tls=_tls(host, source),
        credentials=f"{credentials}; {_pull_secret(host)}",
        headers=tuple(dict.fromkeys(name for name, _ in host.headers)),
        dial_timeout_s=host.dial_timeout_s,
        proxy=_without_user(host.proxy),
        problems=tuple(problems),
    )


def _role(host: RegistryHost) -> str:
    what = "the registry, or what stands in its place" if host.is_server else "a mirror"
    return f"{what}, told ns={host.namespace}" if host.namespace else what


def _asked_for(host: RegistryHost) -> str:
    uses = {"resolve": "what a tag stands for", "pull": "content by digest"}
    said = [use for capability, use in uses.items() if capability in host.capabilities]
    return " and ".join(said) or "nothing: it may only be pushed to"


def _tls(host: RegistryHost, source: str) -> str:
    if not host.is_secure:
        return f"none: {source or 'a port of this machine, of which no file says more'}"
    words = [f"its own for this host: {', '.join(host.ca)}"] if host.ca else []
    authorities = " and ".join(["the system's authorities", *words])
    checked = "not verified (skip_verify)" if host.skip_verify else f"verified by {authorities}"
    if host.client:
        checked += f"; shows the certificate {host.client[0]}"
    return checked


def _pull_secret(host: RegistryHost) -> str:
    if host.is_server:
        return "a pod's pull secret goes before, if its server_address is empty or fits"
    return "a pod's pull secret is not sent, unless its server_address names this host"


def _without_user(proxy: str) -> str:
    parts = urlsplit(proxy)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
