# SPDX-License-Identifier: Apache-2.0
"""CNI folders for tests: configurations, and plugins that do as they are told.

FOLDER/net.d/            configurations
FOLDER/bin/              the plugin of cni_plugin.py by the names that it is wanted under
/usr/lib/cni             Debian's containernetworking-plugins
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pycri.config import CniSettings

DEBIAN_PLUGINS = "/usr/lib/cni"


class CniFolders:
    """The folders that a node or a `CniNetwork` is pointed at."""

    def __init__(self, folder: Path) -> None:
        """Make them: no configuration, no plugin."""
        self.folder = folder
        self.conf_dir = folder / "net.d"
        self.bin_dir = folder / "bin"
        self._held = self.bin_dir / "held"
        self.conf_dir.mkdir(parents=True)
        self._held.mkdir(parents=True)

    def settings(self, timeout_s: int = 60) -> CniSettings:
        bin_dirs = (str(self.bin_dir), DEBIAN_PLUGINS)
        return CniSettings(conf_dir=str(self.conf_dir), bin_dirs=bin_dirs, timeout_s=timeout_s)

    def toml(self, timeout_s: int = 60) -> str:
        """Return the settings as a table of a node's config."""
        return (
            f'[network.cni]\nconf_dir = "{self.conf_dir}"\n'
            f'bin_dirs = ["{self.bin_dir}", "{DEBIAN_PLUGINS}"]\ntimeout_s = {timeout_s}\n'
        )

    # configurations

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Put a configuration in its place at once, by a rename."""
        fresh = self.conf_dir / f".{name}.new"
        fresh.write_text(json.dumps(content))
        fresh.rename(self.conf_dir / name)

    def write_chain(
        self,
        *types: str,
        name: str = "pods",
        version: str = "1.0.0",
        file: str = "10-pods.conflist",
        addresses: tuple[str, ...] = ("10.1.2.3/24",),
        **fields: Any,
    ) -> None:
        """Write a conflist of our own plugins, and install them."""
        for kind in types:
            self.install(kind)
        plugins = [{"type": kind, "addresses": addresses, **fields} for kind in types]
        self.write(file, {"cniVersion": version, "name": name, "plugins": plugins})

    # our plugin

    def install(self, kind: str) -> None:
        """Put our plugin among the programs, under the name `kind`."""
        shutil.copy(Path(__file__).with_name("cni_plugin.py"), self.bin_dir / kind)
        (self.bin_dir / kind).chmod(0o755)

    @contextmanager
    def writing(self, kind: str) -> Iterator[None]:
        """Have a plugin open for writing, as an upgrade has: it cannot be run (ETXTBSY)."""
        with open(self.bin_dir / kind, "r+b"):
            yield

    def behave(self, wanted: dict[str, str]) -> None:
        """Say what our plugins do: by command, or by "TYPE/COMMAND"."""
        fresh = self.bin_dir / "behaviour.new"
        fresh.write_text(json.dumps(wanted))
        fresh.rename(self.bin_dir / "behaviour")

    def calls(self, *commands: str) -> list[dict[str, Any]]:
        """Return the calls of our plugins so far, of these commands or of all."""
        path = self.bin_dir / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [json.loads(line) for line in lines]
        return [call for call in calls if not commands or call["command"] in commands]

    def order(self, *commands: str) -> list[str]:
        """Return "COMMAND plugin interface" of each call so far."""
        return [
            f"{c['command']} {c['plugin']} {c['environment'].get('CNI_IFNAME', '')}".strip()
            for c in self.calls(*commands)
        ]

    def held(self) -> list[str]:
        """Return what our plugins hold for pods: "POD.INTERFACE.TYPE"."""
        return sorted(path.name for path in self._held.iterdir())
