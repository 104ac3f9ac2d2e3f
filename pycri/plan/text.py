# SPDX-License-Identifier: Apache-2.0
"""A plan as text, one step a line, in the order of execution (`spawner/sandbox.py`, `init.py`).

Values of variables are left out, as they are of every log: they are secrets often enough.
"""

from pycri.model.hooks import Hooks
from pycri.model.plan import CgroupPlan, ContainerPlan, HookPlan, ProcessPlan, SandboxPlan
from pycri.model.security import CAPABILITY_NAMES


def render_plan(plan: ContainerPlan | SandboxPlan) -> str:
    """Return every step of the plan."""
    lines = _sandbox_lines(plan) if isinstance(plan, SandboxPlan) else _container_lines(plan)
    return "".join(f"{line}\n" for line in lines)


def _sandbox_lines(plan: SandboxPlan) -> list[str]:
    lines = ["namespace pid new"] if plan.init else []
    lines += _cgroup_lines(plan.cgroup)
    lines += [f"namespace user new, {plan.user_namespace}"] if plan.user_namespace else []
    lines += [str(pin) for pin in plan.pins]
    lines += [f"namespace net {plan.network}"] if plan.network else []
    lines += [f"hostname {plan.hostname}"] if plan.hostname else []
    lines += [f"sysctl {name} = {value}" for name, value in plan.sysctls]
    lines += [f"shm {plan.shm[0]} {plan.shm[1]} bytes"] if plan.shm else []
    return [*lines, *(["init, which reaps"] if plan.init else [])]


def _container_lines(plan: ContainerPlan) -> list[str]:
    process = plan.process
    target = f" of {plan.pid_target}" if plan.pid_target else ""
    return [
        f"namespace pid {plan.pid_namespace}{target}",
        *_cgroup_lines(plan.cgroup),
        f"oom_score_adj {process.oom_score_adj}",
        *map(str, plan.namespaces),
        *(f"namespace {kind} new" for kind in plan.new_namespaces),
        f"log {plan.log_path}" if plan.log_path else "log nowhere",
        "namespace mnt new",
        *map(str, plan.steps),
        *(["terminal /dev/console"] if process.terminal else []),
        *_hook_lines(plan.hooks, "create_runtime", "create_container"),
        "pivot_root",
        *(f"rlimit {name} {_limit(soft)}:{_limit(hard)}" for name, soft, hard in process.rlimits),
        *([str(plan.user_namespace)] if plan.user_namespace else []),
        f"stdin {'kept open' if plan.stdin else '/dev/null'}",
        *_process_lines(process, plan.hooks),
        *_hook_lines(plan.hooks, "poststart", "poststop"),
    ]


def _hook_lines(plan: HookPlan | None, *names: str) -> list[str]:
    hooks = plan.hooks if plan else Hooks()
    return [
        f"{name.replace('_', ' ')} hook {_word(hook.path)}"
        for name in names
        for hook in getattr(hooks, name)
    ]


def _cgroup_lines(plan: CgroupPlan) -> list[str]:
    lines = [f"cgroup {path}" for path in plan.directories]
    lines += [f"controllers {' '.join(plan.controllers)}"] if plan.controllers else []
    if plan.device_rules is not None:
        lines += ["deny all devices", *(f"allow {rule}" for rule in plan.device_rules)]
    return lines + [f"write {value!r} to {path}" for path, value in plan.writes]


def _process_lines(process: ProcessPlan, hooks: HookPlan | None) -> list[str]:
    sets = process.capabilities
    names = (entry.partition(b"=")[0].decode(errors="replace") for entry in process.env)
    lines = [
        f"cwd {_word(process.cwd)}",
        f"bounding capabilities {_capabilities(sets.bounding)}",
        f"user {process.user.uid}:{process.user.gid} groups {list(process.user.groups)}",
        f"capabilities {_capabilities(sets.effective)}",
    ]
    for name in ("permitted", "inheritable", "ambient"):
        numbers = getattr(sets, name)
        # The usual: what is effective is permitted, and nothing is handed on.
        if numbers != (sets.effective if name == "permitted" else ()):
            lines.append(f"{name} capabilities {_capabilities(numbers)}")
    lines += ["no new privileges"] if process.no_new_privs else []
    lines += _hook_lines(hooks, "start_container")
    lines += [f"apparmor {process.apparmor_profile}"] if process.apparmor_profile else []
    lines += [f"selinux {process.selinux_label}"] if process.selinux_label else []
    if process.seccomp is not None:
        lines.append(f"seccomp {len(process.seccomp.instructions) // 8} instructions")
    return [
        *lines,
        f"env {' '.join(map(_word, names))}",
        f"exec {' '.join(map(_word, process.args))}",
    ]


def _capabilities(numbers: tuple[int, ...]) -> str:
    if len(numbers) == len(CAPABILITY_NAMES):
        return "all"
    named = (CAPABILITY_NAMES[n].removeprefix("CAP_").lower() for n in sorted(numbers))
    return " ".join(named) or "none"


def _limit(value: int) -> str:
    return "unlimited" if value < 0 else str(value)


def _word(text: str) -> str:
    """Return text as one word of one line."""
    return text if text and text.isprintable() and " " not in text else repr(text)
