# SPDX-License-Identifier: Apache-2.0
"""What a CNI plugin says: the result of ADD, or an error. Pure.

Results of the versions 0.3 to 1.1 differ in one key only: up to 0.4 an address has its "version".

Source: CNI SPEC.md, section 5.
"""

from ipaddress import ip_interface
from typing import Any, Final

import msgspec

from pycri.model.network import Interface
from pycri.network.cni.conflist import VERSIONS, Json

UNKNOWN_CONTAINER: Final = 3
"""The error code that says: there is nothing to clean up."""
REFUSED: Final = frozenset({1, 2, 4, 6, 7})
"""Codes of a request that the plugin does not take: its version, fields or names are wrong."""

_EXCERPT: Final = 200


class PluginError(msgspec.Struct, frozen=True, kw_only=True):
    """An error as a plugin printed it. code: 0 if it printed none."""

    code: int = 0
    msg: str = ""
    details: str = ""

    def __str__(self) -> str:
        text = "; ".join(filter(None, (self.msg, self.details))) or "no reason given"
        return f"{text} (code {self.code})" if self.code else text


class _Interface(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    mac: str = ""
    sandbox: str = ""


class _Address(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    interface: int | None = None


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    interfaces: tuple[_Interface, ...] | None = None
    ips: tuple[_Address, ...] | None = None


def parse_result(output: bytes, version: str) -> Json | PluginError:
    """Return the result in the form of `version`, all of its keys kept, or what is wrong with it.

    A result without a version is of the version that was asked for.
    """
    if not output.strip():
        return PluginError(msg="no result was printed")
    try:
        raw = msgspec.json.decode(output)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return PluginError(msg=f"no JSON was printed: {_excerpt(output)}")
    if not isinstance(raw, dict):
        return PluginError(msg=f"no JSON object was printed: {_excerpt(output)}")
    said = raw.get("cniVersion") or version
    if said not in VERSIONS:
        return PluginError(msg=f"the result is of version {said!r}, not {version}")
    if fault := _find_fault(raw):
        return PluginError(msg=f"the result is bad: {fault}")
    result: Json = {**raw, "cniVersion": version}
    if raw.get("ips"):
        result["ips"] = [_in_version(entry, version) for entry in raw["ips"]]
    return result


def list_interfaces(result: Json, name: str) -> tuple[Interface, ...]:
    """Return the pod's interfaces that a parsed result tells of, `name` first.

    name: the interface that was asked for; an address that names none is its own. What is on the
    host is left out, but for the other end of that interface.
    """
    parsed = msgspec.convert(result, _Result)
    interfaces = parsed.interfaces or ()
    macs = {name: ""} | {entry.name: entry.mac for entry in interfaces if entry.sandbox}
    addresses: dict[str, list[str]] = {inside: [] for inside in macs}
    for entry in parsed.ips or ():
        if entry.interface is None:
            addresses[name].append(_with_prefix(entry.address))
        elif interfaces[entry.interface].sandbox:
            addresses[interfaces[entry.interface].name].append(_with_prefix(entry.address))
    return tuple(
        Interface(
            name=inside,
            mac=macs[inside],
            # IPv4 first, as containerd shows it unless it is told otherwise.
            addresses=tuple(sorted(addresses[inside], key=lambda text: ":" in text)),
            host_interface=_host_end(interfaces) if inside == name else "",
        )
        for inside in macs
    )


def parse_error(output: bytes, complaint: bytes, status: int) -> PluginError:
    """Return what a plugin that failed says. complaint: the end of its standard error.

    status: its exit code, negative for a signal.
    """
    text = complaint.decode(errors="replace").strip()
    heard = f"stderr: {text}" if text else ""
    try:
        error = msgspec.json.decode(output, type=PluginError)
    except (msgspec.DecodeError, UnicodeDecodeError):
        ended = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        printed = f"printed {_excerpt(output)}" if output.strip() else "printed no error"
        return PluginError(msg=f"{ended}, {printed}", details=heard)
    details = "; ".join(filter(None, (error.details, heard)))
    return PluginError(code=error.code, msg=error.msg, details=details)


def _find_fault(raw: Json) -> str:
    try:
        parsed = msgspec.convert(raw, _Result)
        for entry in parsed.ips or ():
            ip_interface(entry.address)
    except ValueError as error:  # also msgspec's ValidationError
        return str(error)
    count = len(parsed.interfaces or ())
    for entry in parsed.ips or ():
        if entry.interface is not None and not 0 <= entry.interface < count:
            return f"there is no interface {entry.interface}"
    return ""


def _host_end(interfaces: tuple[_Interface, ...]) -> str:
    """Return the host's end of a veth: it stands before the pod's, and behind its bridge."""
    end = ""
    for entry in interfaces:
        if entry.sandbox:
            return end
        end = entry.name
    return ""


def _in_version(entry: Any, version: str) -> Json:
    """Return an address with or without its family, as the version has it."""
    plain = {key: value for key, value in entry.items() if key != "version"}
    if VERSIONS.index(version) >= VERSIONS.index("1.0.0"):
        return plain
    return {"version": str(ip_interface(entry["address"]).version), **plain}


def _with_prefix(address: str) -> str:
    return str(ip_interface(address))


def _excerpt(output: bytes) -> str:
    """Return the beginning of what was printed, to be shown."""
    text = output[: _EXCERPT * 4].decode(errors="replace")
    return repr(text[:_EXCERPT]) + ("..." if len(text) > _EXCERPT else "")
