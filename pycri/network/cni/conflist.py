# SPDX-License-Identifier: Apache-2.0
"""CNI network configurations: files to networks, and a network to what each plugin is asked. Pure.

    DIR/10-pods.conflist       {"cniVersion", "name", "plugins": [{"type", ...}, ...]}
    DIR/20-old.conf  .json     one plugin: {"cniVersion", "name", "type", ...}
    DIR/NAME/*.conf            more plugins of the network NAME, behind those of its .conflist

The first file in the order of names is the default network, as everywhere; if that one is bad there
is none: taking the next would put pods on a network that nobody meant.

Source: CNI SPEC.md (0.3.1 to 1.1.0), sections 1 and 3.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from pycri.errors import InvalidSettings

VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Versions of the specification, oldest first."""
EXTENSIONS: Final = (".conf", ".conflist", ".json")

Json = dict[str, Any]
T = TypeVar("T")
_Flag = bool | Literal["true", "false"]
_PluginType = Annotated[str, Meta(pattern=r"^[^/\\\x00-\x20]+$")]
_NetworkName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file below the folder, as read. path: from there; fault: why it cannot be read, or ""."""

    path: str
    content: bytes = b""
    fault: str = ""


class Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin of a network. fields: its object as it stands in the file."""

    type: str
    capabilities: frozenset[str]
    fields: Json


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A network: plugins to be run in this order, and the version to speak with them."""

    name: str
    version: str
    plugins: tuple[Plugin, ...]
    disable_check: bool = False
    disable_gc: bool = False

    def as_json(self) -> Json:
        """Return the network as a conflist would have it."""
        plugins = [plugin.fields for plugin in self.plugins]
        return {"cniVersion": self.version, "name": self.name, "plugins": plugins}

    def speaks(self, version: str) -> bool:
        """Tell whether plugins are spoken to in `version` or a later one."""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)


class Folder(msgspec.Struct, frozen=True, kw_only=True):
    """All that the folder holds.

    default: None where there is no file, or the first is bad. networks: by name, the first of
    equal names; faults: what is wrong, a line for each bad file, the first file's first.
    """

    default: Network | None = None
    networks: dict[str, Network] = {}
    faults: tuple[str, ...] = ()


class _Plugin(msgspec.Struct, frozen=True, kw_only=True):
    type: _PluginType
    capabilities: dict[str, bool] = {}


class _Header(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: _NetworkName
    cni_version: str = ""
    cni_versions: tuple[str, ...] = ()


class _Document(_Header, frozen=True, kw_only=True, rename="camel"):
    disable_check: _Flag = False
    disable_gc: _Flag = msgspec.field(default=False, name="disableGC")
    load_only_inlined_plugins: _Flag = False
    plugins: Annotated[tuple[Json, ...], Meta(min_length=1)] | msgspec.UnsetType = msgspec.UNSET


def parse_folder(files: Sequence[File]) -> Folder:
    """Return the networks of the files, which may come in any order."""
    default: Network | None = None
    networks: dict[str, Network] = {}
    faults: list[str] = []
    top = sorted((f for f in files if "/" not in f.path), key=lambda file: file.path)
    for number, file in enumerate(top):
        try:
            network = parse_network(file, files)
        except InvalidSettings as error:
            faults.append(str(error))
            continue
        networks.setdefault(network.name, network)
        if number == 0:
            default = network
    return Folder(default=default, networks=networks, faults=tuple(faults))


def parse_network(file: File, files: Sequence[File] = ()) -> Network:
    """Return the network of one file; `files` may hold more plugins for it.

    Raises: InvalidSettings naming the file and the key.
    """
    raw = _parse_object(file)
    if not file.path.endswith(".conflist"):
        plugin = _parse_plugin(file, raw, "")
        header = _convert(file, raw, _Header)
        return Network(name=header.name, version=_choose(file, header), plugins=(plugin,))
    document = _convert(file, raw, _Document)
    inlined = () if document.plugins is msgspec.UNSET else document.plugins
    plugins = [_parse_plugin(file, entry, f"plugins[{i}].") for i, entry in enumerate(inlined)]
    if not _is_set(document.load_only_inlined_plugins):
        plugins += _parse_siblings(document.name, files)
    if not plugins:
        raise InvalidSettings(f"{file.path}: plugins: is missing")
    return Network(
        name=document.name,
        version=_choose(file, document),
        plugins=tuple(plugins),
        disable_check=_is_set(document.disable_check),
        disable_gc=_is_set(document.disable_gc),
    )


def render_request(
    network: Network,
    plugin: Plugin,
    *,
    arguments: Mapping[str, Any] | None = None,
    previous: Json | None = None,
    extra: Json | None = None,
) -> bytes:
    """Return what a plugin reads from its standard input: its own object, with what we know.

    arguments: by capability; a plugin gets those that it declares. previous: the result so far.
    extra: further keys, of GC.
    """
    fields = {
        key: value
        for key, value in plugin.fields.items()
        if key != "capabilities" and not key.startswith("cni.dev/")
    }
    request: Json = {**fields, "cniVersion": network.version, "name": network.name}
    given = {
        name: value for name, value in (arguments or {}).items() if name in plugin.capabilities
    }
    if given:
        request["runtimeConfig"] = given
    if previous is not None:
        request["prevResult"] = previous
    return msgspec.json.encode(request | (extra or {}))


def _parse_object(file: File) -> Json:
    if file.fault:
        raise InvalidSettings(f"{file.path}: {file.fault}")
    try:
        raw = msgspec.json.decode(file.content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{file.path}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InvalidSettings(f"{file.path}: not a JSON object")
    return raw


def _parse_plugin(file: File, raw: Json, place: str) -> Plugin:
    parsed = _convert(file, raw, _Plugin, place)
    declared = frozenset(name for name, wanted in parsed.capabilities.items() if wanted)
    return Plugin(type=parsed.type, capabilities=declared, fields=raw)


def _parse_siblings(name: str, files: Sequence[File]) -> list[Plugin]:
    theirs = [f for f in files if f.path.startswith(f"{name}/") and f.path.endswith(".conf")]
    theirs.sort(key=lambda file: file.path)
    return [_parse_plugin(file, _parse_object(file), "") for file in theirs]


def _choose(file: File, header: _Header) -> str:
    """Return the highest version that both the configuration and we speak."""
    offered = {*header.cni_versions, header.cni_version} - {""}
    known = [version for version in VERSIONS if version in offered]
    if not known:
        text = f"{', '.join(sorted(offered))} is not known" if offered else "is missing"
        reason = f"cniVersion: {text}; known are {', '.join(VERSIONS)}"
        raise InvalidSettings(f"{file.path}: {reason}")
    return known[-1]


def _is_set(flag: _Flag) -> bool:
    return flag is True or flag == "true"


def _convert(file: File, raw: Json, kind: type[T], place: str = "") -> T:
    """Check what we need of an object; msgspec's "- at `$.a.b`" becomes "a.b: " in front."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        key = re.sub(r"^\.|`$", "", where)
        key = f"{place}{key}: " if key else place and f"{place[:-1]}: "
        raise InvalidSettings(f"{file.path}: {key}{reason}") from error
