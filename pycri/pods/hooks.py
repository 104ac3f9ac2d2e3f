# SPDX-License-Identifier: Apache-2.0
"""Hooks in the daemon: the bundle they are told of, and those run beside a running container.

Those before the container's program are run by its init child (`spawner/hooks.py`). What fails
later changes nothing any more, and is logged (OCI runtime-spec, runtime.md "Lifecycle").
"""

import asyncio

import msgspec

from pycri.logs import Log
from pycri.model.container import ContainerRecord
from pycri.model.hooks import ContainerState, Hook
from pycri.model.plan import ContainerPlan
from pycri.plan.oci import Bundle, render_config
from pycri.pods.layout import Layout

_log = Log("hooks")
_PATIENCE_S = 10
"""For hooks that name no time: an end that waits for one is not told to the kubelet."""


def render_bundle(plan: ContainerPlan, cgroup: str) -> bytes | None:
    """Return the text of the bundle's `config.json`; None for a container without hooks.

    Raises: Unsupported for what OCI has no words for.
    """
    if plan.hooks is None:
        return None
    # The filter is a program by now, and nothing for a hook.
    process = msgspec.structs.replace(plan.process, seccomp=None)
    shown = msgspec.structs.replace(plan, process=process)
    return render_config(shown, Bundle(rootfs=f"{plan.hooks.bundle}/rootfs", cgroup=cgroup))


async def run_poststart(record: ContainerRecord, layout: Layout, pid: int) -> None:
    """Run the hooks that follow the start of a container's program."""
    await _run_all("poststart", record.device_edits.hooks.poststart, record, layout, pid)


async def run_poststop(record: ContainerRecord, layout: Layout) -> None:
    """Run the hooks that follow the end of a container's processes."""
    await _run_all("poststop", record.device_edits.hooks.poststop, record, layout, 0)


async def _run_all(
    name: str, hooks: tuple[Hook, ...], record: ContainerRecord, layout: Layout, pid: int
) -> None:
    bundle = layout.bundle(record.id)
    state = ContainerState(
        id=record.id,
        status="running" if pid else "stopped",
        pid=pid,
        bundle=bundle,
        annotations=dict(record.spec.annotations),
    )
    for hook in hooks:
        problem = await _run(hook, msgspec.json.encode(state), bundle)
        if problem:
            _log.warning(f"{name} hook failed", container=record.id, hook=hook.path, why=problem)


async def _run(hook: Hook, state: bytes, folder: str) -> str:
    """Run one hook to its end. Returns what went wrong, or ""."""
    env = dict(entry.partition("=")[::2] for entry in hook.env)
    try:
        process = await asyncio.create_subprocess_exec(
            *hook.args,
            executable=hook.path,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=folder,
            env=env,
        )
    except OSError as error:
        return str(error)
    try:
        async with asyncio.timeout(hook.timeout_s or _PATIENCE_S):
            await process.communicate(state)
    except BaseException as error:
        process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            return f"has not ended in {hook.timeout_s or _PATIENCE_S} s"
        raise
    return f"ended with {process.returncode}" if process.returncode else ""
