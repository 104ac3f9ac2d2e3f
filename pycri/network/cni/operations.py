# SPDX-License-Identifier: Apache-2.0
"""The operations of CNI: what is asked of a network is asked of each of its plugins in turn.

Source: CNI SPEC.md, section 3. Plugins are not asked for their versions beforehand (VERSION): one
that does not speak the configuration's says so.
"""

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from pycri.network.cni import plugins
from pycri.network.cni.attachments import CniAttachment
from pycri.network.cni.conflist import Json, Network, Plugin, render_request
from pycri.network.cni.results import REFUSED, UNKNOWN_CONTAINER, PluginError, parse_result

VALID_KEYS: Final = ("cni.dev/valid-attachments", "cni.dev/attachments")
"""The key of GC, and the one that earlier libraries of plugins look for."""


class Operations:
    """Runs the plugins of networks, with the settings of one daemon."""

    def __init__(self, bin_dirs: Sequence[str], timeout_s: float, mark: str) -> None:
        """timeout_s: of one plugin. mark: the daemon's, see `plugins.MARK`."""
        self._bin_dirs = bin_dirs
        self._timeout_s = timeout_s
        self._environment = {"CNI_PATH": ":".join(bin_dirs), plugins.MARK: mark}

    def find_missing(self, network: Network) -> str | None:
        """Return what is missing of the network's programs, in words, or None. Asks the disk."""
        for plugin in network.plugins:
            if plugins.find_plugin(plugin.type, self._bin_dirs) is None:
                return f"CNI network {network.name}: {self._absence(plugin)}"
        return None

    async def add(self, attachment: CniAttachment) -> Json:
        """Attach, and return the last plugin's result; what failed is to be undone by `delete`.

        Raises: PluginFailed, by the first plugin that fails.
        """
        result: Json | None = None
        for plugin in attachment.network.plugins:
            request = _request(attachment, plugin, result)
            output = await self._run("ADD", attachment.network, plugin, request, attachment)
            answer = parse_result(output, attachment.network.version)
            if isinstance(answer, PluginError):
                raise plugins.PluginFailed(_step("ADD", attachment.network, plugin), answer)
            result = answer
        assert result is not None  # a network has a plugin
        return result

    async def check(self, attachment: CniAttachment) -> None:
        """Ask whether the attachment is as it was made. Raises: PluginFailed with what is not."""
        network = attachment.network
        if network.disable_check or not network.speaks("0.4.0"):
            return
        for plugin in network.plugins:
            request = _request(attachment, plugin, attachment.result)
            await self._run("CHECK", network, plugin, request, attachment)

    async def delete(self, attachment: CniAttachment) -> None:
        """Undo `add`, or as much of it as was done; a namespace that has gone is fine.

        Raises: PluginFailed by the first plugin that fails, the last of the network first: what
            stands on another's work must go before it.
        """
        network = attachment.network
        present = await asyncio.to_thread(is_pinned, attachment.netns)
        if not present:
            attachment = msgspec.structs.replace(attachment, netns="")
        result = attachment.result if network.speaks("0.4.0") else None
        for plugin in reversed(network.plugins):
            request = _request(attachment, plugin, result)
            try:
                await self._run("DEL", network, plugin, request, attachment)
            except plugins.PluginFailed as error:
                # A plugin that does not take the request did not take the same one as ADD.
                refused = error.code in REFUSED and attachment.result is None
                if error.code != UNKNOWN_CONTAINER and not refused:
                    raise

    async def status(self, network: Network) -> None:
        """Ask whether pods can be attached. Raises: PluginFailed with why not."""
        if not network.speaks("1.1.0"):
            return
        for plugin in network.plugins:
            await self._run("STATUS", network, plugin, render_request(network, plugin))

    async def collect(self, network: Network, valid: Iterable[CniAttachment]) -> list[str]:
        """Let plugins free what belongs to no valid attachment (GC); return what failed."""
        if network.disable_gc or not network.speaks("1.1.0"):
            return []
        kept = [{"containerID": v.pod_id, "ifname": v.interface} for v in valid]
        failures = []
        for plugin in network.plugins:
            request = render_request(network, plugin, extra=dict.fromkeys(VALID_KEYS, kept))
            try:
                await self._run("GC", network, plugin, request)
            except plugins.PluginFailed as error:
                failures.append(str(error))
        return failures

    async def _run(
        self,
        command: str,
        network: Network,
        plugin: Plugin,
        request: bytes,
        attachment: CniAttachment | None = None,
    ) -> bytes:
        step = _step(command, network, plugin)
        path = plugins.find_plugin(plugin.type, self._bin_dirs)
        if path is None:
            raise plugins.PluginFailed(step, PluginError(msg=self._absence(plugin)))
        environment = {**self._environment, "CNI_COMMAND": command, **_parameters(attachment)}
        return await plugins.run_plugin(
            path, environment, request, step=step, timeout_s=self._timeout_s
        )

    def _absence(self, plugin: Plugin) -> str:
        return f"plugin {plugin.type} is not in {', '.join(self._bin_dirs)}"


def _step(command: str, network: Network, plugin: Plugin) -> str:
    return f"CNI {command} of plugin {plugin.type}, network {network.name}"


def _request(attachment: CniAttachment, plugin: Plugin, previous: Json | None) -> bytes:
    return render_request(
        attachment.network,
        plugin,
        arguments=attachment.capability_arguments,
        previous=previous,
    )


def _parameters(attachment: CniAttachment | None) -> Mapping[str, str]:
    if attachment is None:
        return {}
    return {
        "CNI_CONTAINERID": attachment.pod_id,
        "CNI_NETNS": attachment.netns,
        "CNI_IFNAME": attachment.interface,
        "CNI_ARGS": ";".join(f"{name}={value}" for name, value in attachment.arguments),
    }


def is_pinned(path: str) -> bool:
    """Tell whether a namespace is mounted at `path`: on another device than its folder."""
    try:
        return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except OSError:
        return False
