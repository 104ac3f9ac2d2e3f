# SPDX-License-Identifier: Apache-2.0
"""Settings: one frozen tree, read once from TOML, defined only here.

    /etc/pycri/config.toml        read first
    /etc/pycri/config.d/*.toml    read after it in the order of their names; a later key wins

Name, type, default and help of a setting are its line below: the loader, its error messages and
the text of `pycri config` are derived from it. The environment is not read.
"""

import difflib
import ipaddress
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec
from msgspec import Meta

from pycri.errors import InvalidSettings
from pycri.model.ranges import parse_ranges

S = TypeVar("S", bound=msgspec.Struct)

DEFAULT_PATH = Path("/etc/pycri/config.toml")

AbsolutePath = Annotated[str, Meta(pattern=r"^/")]
OptionalPath = Annotated[str, Meta(pattern=r"^(/.*)?$")]
Identifier = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=15)]


class CniSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where plugins of the Container Network Interface are, and what they are told."""

    conf_dir: Annotated[
        AbsolutePath,
        Meta(description="Network configurations; the first file by name is the pods' network."),
    ] = "/etc/cni/net.d"
    bin_dirs: Annotated[
        tuple[AbsolutePath, ...],
        Meta(min_length=1, description="Folders of plugins; of equal names the first counts."),
    ] = ("/opt/cni/bin", "/usr/lib/cni")
    timeout_s: Annotated[
        int, Meta(ge=1, le=600, description="How long one run of a plugin may take, seconds.")
    ] = 60


class NetworkSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network of pods: CNI plugins, or the built-in one with bridge, range and table."""

    kind: Annotated[
        Literal["auto", "builtin", "cni"],
        Meta(
            description='"auto": CNI from when a configuration first stands in cni.conf_dir, and'
            ' built-in until then; "builtin" or "cni": always.'
        ),
    ] = "auto"
    bridge: Annotated[Identifier, Meta(description="Name of the bridge pods are attached to.")] = (
        "pycri0"
    )
    range: Annotated[
        str,
        Meta(
            description="Range of pod addresses, IPv4 or IPv6, or one of each with a comma between"
            " them, until UpdateRuntimeConfig names others."
        ),
    ] = "10.88.0.0/16"
    table: Annotated[
        Identifier, Meta(description="Name of the nftables tables that hold our rules.")
    ] = "pycri"
    mtu: Annotated[
        int, Meta(ge=576, le=65535, description="MTU of the bridge and of pod interfaces, bytes.")
    ] = 1500
    ready: Annotated[
        int,
        Meta(
            ge=0,
            le=64,
            description="Networks made ahead of the pods that get them, on the built-in network;"
            " each holds an address and some memory of the kernel's.",
        ),
    ] = 4
    cni: CniSettings = CniSettings()

    def __post_init__(self) -> None:
        try:
            parse_ranges(self.range)
        except ValueError as error:
            raise ValueError(f"range: {error}") from error


_HOST = r"[A-Za-z0-9.-]+(:[0-9]+)?"
_PATH = r"(/[a-z0-9._-]+)"
RepositoryPrefix = Annotated[str, Meta(pattern=rf"^{_HOST}{_PATH}*$")]
Repository = Annotated[str, Meta(pattern=rf"^{_HOST}{_PATH}+$")]
ImageRule = Annotated[str, Meta(pattern=rf"^(\*|\*\.[A-Za-z0-9.-]+(:[0-9]+)?|{_HOST}{_PATH}*)$")]


class PolicySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which images may be pulled. Imports are not asked: they are the operator's own act."""

    verifier_dir: Annotated[
        AbsolutePath,
        Meta(description="Folder of programs in containerd's image-verifier protocol."),
    ] = "/opt/pycri/image-verifier/bin"
    max_verifiers: Annotated[
        int, Meta(ge=1, description="Most programs in verifier_dir; with more nothing is verified.")
    ] = 10
    verifier_timeout_s: Annotated[
        float, Meta(gt=0, description="Seconds for each verifier; a late one rejects the image.")
    ] = 10.0
    rules: Annotated[
        dict[ImageRule, Literal["accept", "reject", "verify"]],
        Meta(
            description='Registry, registry/path, *.domain or "*", to accept, reject or verify; '
            "the most specific counts."
        ),
    ] = {}


class ImageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where images come from. Registries are described in `certs_dir`, not here."""

    certs_dir: Annotated[
        AbsolutePath,
        Meta(description="Folder of HOST/hosts.toml, in containerd's format; read at each pull."),
    ] = "/etc/pycri/certs.d"
    credentials_file: Annotated[
        AbsolutePath,
        Meta(description="Registry credentials of the node, in Docker's format; may be absent."),
    ] = "/etc/pycri/credentials.json"
    progress_timeout_s: Annotated[
        int,
        Meta(
            ge=1,
            description="Seconds without a byte after which a registry's connection is given up.",
        ),
    ] = 60
    default_prefix: Annotated[
        RepositoryPrefix,
        Meta(description="What stands before a name of one part; its host before any other."),
    ] = "docker.io/library"
    pinned: Annotated[
        tuple[str, ...],
        Meta(description="Patterns (*, ?) of full names that no collector of images shall remove."),
    ] = ()
    aliases: Annotated[
        dict[Annotated[str, Meta(pattern=r"^[a-z0-9._/-]+$")], Repository],
        Meta(description='Short names of the node, without tag: "tools" = "host.test/team/tools".'),
    ] = {}
    policy: PolicySettings = PolicySettings()


class PrometheusSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Metrics of the daemon itself."""

    address: Annotated[
        str,
        Meta(
            pattern=r"^([^:\s]+:\d+|\[[0-9a-fA-F:]+\]:\d+)?$",
            description='Where metrics are served, "127.0.0.1:9180"; "" is nowhere. Not secured.',
        ),
    ] = ""


class StreamingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server behind the URLs of Exec, Attach and PortForward. Its tokens are all its secrecy:
    beyond loopback it should have a certificate."""

    address: Annotated[str, Meta(description="IP address it listens on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Its port; 0 for any free one.")] = 0
    tls_cert: Annotated[
        OptionalPath, Meta(description='Certificate chain, PEM; "" to serve without TLS.')
    ] = ""
    tls_key: Annotated[OptionalPath, Meta(description="Private key of the certificate, PEM.")] = ""
    creation_timeout_s: Annotated[
        int, Meta(ge=1, description="Seconds a client may take to open its streams.")
    ] = 30
    idle_timeout_s: Annotated[
        int, Meta(ge=1, description="Seconds after which a session without traffic is ended.")
    ] = 4 * 3600

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.address)
        except ValueError as error:
            raise ValueError(f"address: {error}") from error
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key: one is set, the other is not")


class TracingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traces of calls for OpenTelemetry; needs pycri[tracing]."""

    endpoint: Annotated[
        str,
        Meta(
            pattern=r"^([^:\s]+:\d+|\[[0-9a-fA-F:]+\]:\d+)?$",
            description='Collector of OTLP over gRPC, "127.0.0.1:4317"; "" is none. Without TLS.',
        ),
    ] = ""
    sampling_per_million: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="Of calls without a trace of their caller's; others follow the caller.",
        ),
    ] = 0


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole tree. Paths not listed are derived from `state_dir` and `run_dir`."""

    state_dir: Annotated[
        AbsolutePath, Meta(description="Database, images and containers; survives a reboot.")
    ] = "/var/lib/pycri"
    run_dir: Annotated[
        AbsolutePath, Meta(description="Sockets, pins and exit records; dies with the boot.")
    ] = "/run/pycri"
    socket: Annotated[
        OptionalPath, Meta(description='The CRI endpoint; "" is pycri.sock in run_dir.')
    ] = ""
    cgroup_parent: Annotated[
        AbsolutePath,
        Meta(description="Cgroup of pods whose caller names no parent, below each hierarchy."),
    ] = "/pycri"
    cdi_dirs: Annotated[
        tuple[AbsolutePath, ...],
        Meta(description="Folders of CDI device specs; of one device the last folder's counts."),
    ] = ("/etc/cdi", "/var/run/cdi")
    log_format: Annotated[
        Literal["text", "json"],
        Meta(description="Lines of key=value, or of JSON objects with the same keys."),
    ] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="The least important lines still logged: debug, info, warning, error."),
    ] = "info"
    network: NetworkSettings = NetworkSettings()
    images: ImageSettings = ImageSettings()
    prometheus: PrometheusSettings = PrometheusSettings()
    streaming: StreamingSettings = StreamingSettings()
    tracing: TracingSettings = TracingSettings()

    @property
    def socket_path(self) -> str:
        """The CRI endpoint."""
        return self.socket or f"{self.run_dir}/pycri.sock"

    @property
    def pins_dir(self) -> str:
        """Namespaces held by bind mounts."""
        return f"{self.run_dir}/ns"

    @property
    def spawner_socket(self) -> str:
        """Where the daemon reaches the spawner."""
        return f"{self.run_dir}/spawner.sock"

    @property
    def database_path(self) -> str:
        return f"{self.state_dir}/pycri.db"

    @property
    def images_dir(self) -> str:
        """Blobs and layers."""
        return f"{self.state_dir}/images"

    @property
    def containers_dir(self) -> str:
        """One folder a container: upper, work."""
        return f"{self.state_dir}/containers"

    @property
    def pods_dir(self) -> str:
        """One folder a pod: hostname, hosts, resolv.conf."""
        return f"{self.state_dir}/pods"


def load(path: Path | None = None) -> Settings:
    """Read `path`, which must exist, or the default file, which may be absent; then its config.d.

    Raises InvalidSettings, naming the file and the key.
    """
    main = path or DEFAULT_PATH
    files = sorted((main.parent / "config.d").glob("*.toml"))
    if path is not None or main.exists():
        files.insert(0, main)
    merged: dict[str, Any] = {}
    for file in files:
        table = read_table(file)
        check_keys(file, table, Settings)
        convert_table(file, table, Settings)
        _merge(merged, table)
    return msgspec.convert(merged, Settings)


def render_settings(settings: Settings) -> str:
    """Return the settings as TOML, each key under its help; it loads to the same tree."""
    lines = ["# Settings of pycri. Every key is optional.", ""]
    return "\n".join([*lines, *_render_table(settings, "")])


def read_table(file: Path) -> dict[str, Any]:
    """Return a TOML file as a table. Raises InvalidSettings, naming the file."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSettings(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{file}: not TOML: {error}") from error


def check_keys(
    file: Path, table: dict[str, Any], struct: type[msgspec.Struct], prefix: str = ""
) -> None:
    """Refuse unknown keys, with the nearest known one as a suggestion."""
    known = {field.name: field for field in msgspec.structs.fields(struct)}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {prefix}{near[0]!s}?" if near else ""
            raise InvalidSettings(f"{file}: {prefix}{key}: unknown key{hint}")
        inner = known[key].default
        if isinstance(inner, msgspec.Struct) and isinstance(value, dict):
            check_keys(file, value, type(inner), f"{prefix}{key}.")


def convert_table(file: Path, table: dict[str, Any], struct: type[S], prefix: str = "") -> S:
    """Check types and ranges of one file; msgspec's "- at `$.a.b`" becomes "a.b: " in front."""
    try:
        return msgspec.convert(table, struct)
    except msgspec.ValidationError as error:
        text = str(error)
        where = re.search(r" - at `(?:key in )?\$\.?(.*)`$", text)
        key = where[1] if where else ""
        reason = text[: where.start()] if where else text
        raise InvalidSettings(f"{file}: {prefix}{key}: {reason}") from error


def _merge(into: dict[str, Any], table: dict[str, Any]) -> None:
    for key, value in table.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _render_table(struct: msgspec.Struct, prefix: str) -> list[str]:
    """Return scalars first, then each sub-table under its header, as TOML wants it."""
    hints = get_type_hints(type(struct), include_extras=True)
    scalars: list[str] = []
    tables: list[str] = []
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        descriptions = [meta.description for meta in getattr(hints[field.name], "__metadata__", ())]
        comment = [f"# {text}" for text in descriptions if text]
        if isinstance(value, msgspec.Struct):
            tables += [f"[{prefix}{field.name}]", *_render_table(value, f"{prefix}{field.name}.")]
        elif isinstance(value, dict):
            entries = [f"{json.dumps(key)} = {json.dumps(item)}" for key, item in value.items()]
            tables += [*comment, f"[{prefix}{field.name}]", *entries, ""]
        else:
            scalars += [*comment, f"{field.name} = {json.dumps(value)}", ""]
    return scalars + tables
