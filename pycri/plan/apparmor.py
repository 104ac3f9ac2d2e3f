# SPDX-License-Identifier: Apache-2.0
"""The AppArmor profile RuntimeDefault: what a container may touch, by path.

An allow list that allows nearly all, and denies what root in a container could do to the node: for
these are paths that namespaces do not cover. It agrees with what containerd and moby load. A
container with CAP_SYS_ADMIN that must mount needs the profile Unconfined, as there.
"""

from pycri.model.security import DEFAULT_APPARMOR

_ABI = "abi <abi/3.0>,\n"
"""What the rules mean; without it, whatever the parser's configuration says."""

# Paths of /proc are written by what they are not: a name of digits is a process, and its files are
# guarded by the kernel's own checks. kernel/shm* are sysctls of the container's ipc namespace.
_RULES = f"""\
profile {DEFAULT_APPARMOR} flags=(attach_disconnected,mediate_deleted) {{
  network,
  unix,
  capability,
  file,
  umount,

  # Stop and kill from the node, and among the container's own processes.
  signal (receive) peer=unconfined,
  signal (send,receive) peer={DEFAULT_APPARMOR},
  ptrace (trace,read,tracedby,readby) peer={DEFAULT_APPARMOR},

  deny /proc/* w,
  deny /proc/{{[^1-9/],[^1-9/][^0-9/],[^1-9s/][^0-9y/][^0-9s/],[^1-9/][^0-9/][^0-9/][^0-9/]*}}/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{{?,??,[^s][^h][^m]**}} w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,

  deny mount,

  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"""


def render_default_profile(*, abi: bool) -> str:
    """Return the text of the profile. abi: the parser has the file abi/3.0 (AppArmor 3)."""
    return (_ABI if abi else "") + _RULES
