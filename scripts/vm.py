# SPDX-License-Identifier: Apache-2.0
"""Boot Debian's kernel in qemu on this host's own files, and run one command there.

No disk image: the guest's root is the host's, shared read-only by 9p, with a tmpfs over it by
overlayfs. What the command writes is gone with the guest. Only version 2 of cgroups is mounted.
Process 1 is a shell, or systemd where that is asked for; that boots twenty seconds longer.

    ttyS0  the kernel's messages, to a file that is shown when the guest ends without a status
    ttyS1  the command's terminal: our standard input and output
    ttyS2  the command's exit status, to a file

The processor is emulated, so that a virtual machine may be the host: the boot takes five seconds,
programs run ten to twenty times slower, and PYCRI_TEST_TIME_FACTOR tells the tests so.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.world.debian import read_dependencies, unpack

CHECKOUT = Path(__file__).resolve().parent.parent
KERNEL = "linux-image-amd64"
"""The package that depends on the current kernel. The cloud kernel has no 9p."""
KERNEL_OPTIONS = ("console=ttyS0", "panic=-1", "random.trust_cpu=on")
BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
BUSYBOX = Path("/bin/busybox")
SYSTEMD = "/lib/systemd/systemd --unit=command.service"
HANDED_ON = ("PATH", "TERM", "XDG_CACHE_HOME", "PYCRI_TEST_TIME_FACTOR")
"""Variables that the command gets from us."""
TIMED_OUT = 124
NO_STATUS = 125
EMULATION_FACTOR = "8"

INIT = """\
#!/bin/busybox sh
set -e
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in {modules}; do insmod "/modules/$module"; done
mount -t tmpfs -o mode=755 upper /upper
mkdir /upper/files /upper/work
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose host /lower
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root

# Loaded on demand, as on any host: the kernel starts /sbin/modprobe.
mkdir -p /root/lib/modules
ln -s {kernel}/lib/modules/{release} /root/lib/modules/{release}
[ -e /root/sbin/modprobe ] || ln -s {busybox} /root/sbin/modprobe

for folder in proc sys dev; do mount --move /$folder /root/$folder; done
mkdir -p /root/dev/pts /root/dev/shm /root/var/lib/pycri
mount -t devpts -o ptmxmode=666,mode=620,gid=5 devpts /root/dev/pts
ln -sf pts/ptmx /root/dev/ptmx
for folder in dev/shm tmp; do mount -t tmpfs -o mode=1777 tmpfs /root/$folder; done
for folder in run var/lib/pycri; do mount -t tmpfs -o mode=755 tmpfs /root/$folder; done
mount -t cgroup2 -o nsdelegate cgroup2 /root/sys/fs/cgroup
[ ! -d /root/sys/fs/selinux ] || mount -t selinuxfs selinuxfs /root/sys/fs/selinux
ip link set lo up
hostname pycri-vm
cat /command >/root/run/command
mkdir -p /root/etc/systemd/system
cat /unit >/root/etc/systemd/system/command.service
rm -f /root/.dockerenv  # a container's, which this is not
exec switch_root /root {process_1}
"""

UNIT = f"""\
# What systemd starts, with what any service needs, and nothing else that the host has enabled.
[Unit]
Description=the command of scripts/vm

[Service]
ExecStart={BUSYBOX} sh /run/command
TimeoutStartSec=infinity
"""

COMMAND = """\
# Process 1 of the guest, or its child: run the command with a terminal of its own, and reap what is
# left to us.
stty -F /dev/ttyS1 {terminal}
stty -F /dev/ttyS2 raw
cd {folder}
# Should nobody be left to end the guest, it ends itself.
({busybox} sleep {timeout_s:g}; {busybox} poweroff -f) &
/usr/bin/setsid -c /usr/bin/env -i {variables} {command} </dev/ttyS1 >/dev/ttyS1 2>&1 &
wait $!
echo $? >/dev/ttyS2
# The ports hold some bytes back, and power goes at once.
stty -F /dev/ttyS1 raw
stty -F /dev/ttyS2 raw
{busybox} poweroff -f
"""


def main() -> int:
    """Parse the command line, boot, and return the command's exit status."""
    parser = argparse.ArgumentParser(prog="vm", description="run a command under Debian's kernel")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds, the boot included")
    parser.add_argument("--memory", type=int, default=3072, help="of the guest, in MiB")
    parser.add_argument("--kernel-option", action="append", default=[], help="as security=selinux")
    parser.add_argument("--systemd", action="store_true", help="as process 1 of the guest")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="default: a shell")
    options = parser.parse_args()
    if platform.machine() != "x86_64":
        parser.error("only on x86_64")
    (kernel,) = unpack(read_dependencies(KERNEL, "linux-image-"))
    with tempfile.TemporaryDirectory(prefix="vm-") as name:
        folder = Path(name)
        script = render_command(options.command or ["sh"], options.timeout)
        process_1 = SYSTEMD if options.systemd else f"{BUSYBOX} sh /run/command"
        write_initramfs(folder, kernel, process_1, script)
        kernel_options = " ".join((*KERNEL_OPTIONS, *options.kernel_option))
        return boot(folder, kernel, kernel_options, options.memory, options.timeout)


def boot(folder: Path, kernel: Path, kernel_options: str, memory_mib: int, timeout_s: float) -> int:
    """Run qemu to its end and return the exit status that the guest reports.

    folder: has the initramfs, and gets the files of the serial ports.
    """
    (image,) = kernel.glob("boot/vmlinuz-*")
    messages, status = folder / "messages", folder / "status"
    command = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot",
        "-display", "none", "-machine", "q35", "-cpu", "max",
        "-accel", "tcg",
        "-smp", str(os.cpu_count() or 1), "-m", str(memory_mib),
        "-kernel", str(image), "-initrd", str(folder / "initramfs"),
        "-append", kernel_options,
        "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
        "-serial", f"file:{messages}",
        "-chardev", f"stdio,id=command,signal={'off' if sys.stdin.isatty() else 'on'}",
        "-serial", "chardev:command",
        "-serial", f"file:{status}",
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        print(f"vm: not done within {timeout_s:g} s", file=sys.stderr)  # noqa: T201  a program
        return TIMED_OUT
    if reported := status.read_text().strip():
        return int(reported)
    last = messages.read_text(errors="replace")[-3000:]
    print(f"vm: no status; the kernel's last words:\n{last}", file=sys.stderr)  # noqa: T201
    return NO_STATUS


def write_initramfs(folder: Path, kernel: Path, process_1: str, command: str) -> None:
    """Write `folder`/initramfs: busybox, the modules for the shared root, two scripts, a unit.

    process_1: what becomes process 1 once it has the root. command: the second script.
    """
    root = folder / "root"
    for name in ("bin", "modules", "proc", "sys", "dev", "lower", "upper", "root"):
        (root / name).mkdir(parents=True)
    (root / "bin/busybox").write_bytes(BUSYBOX.read_bytes())
    modules = list(load_order(index_modules(kernel), BOOT_MODULES))
    for module in modules:
        (root / "modules" / module.name).write_bytes(module.read_bytes())
    words = {
        "modules": " ".join(module.name for module in modules),
        "kernel": kernel,
        "release": modules[0].relative_to(kernel / "lib/modules").parts[0],
        "busybox": BUSYBOX,
        "process_1": process_1,
    }
    (root / "unit").write_text(UNIT)
    (root / "init").write_text(INIT.format(**words))
    (root / "command").write_text(command)
    for program in ("init", "bin/busybox"):
        (root / program).chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in root.rglob("*"))
    with open(folder / "initramfs", "wb") as archive:
        subprocess.run(
            [BUSYBOX, "cpio", "-o", "-H", "newc"],
            cwd=root, input=names.encode(), stdout=archive, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip


def render_command(command: list[str], timeout_s: float) -> str:
    """Return the script that runs `command` in the checkout and reports its status."""
    variables = {"HOME": "/root", "PYCRI_TEST_TIME_FACTOR": EMULATION_FACTOR}
    variables |= {name: os.environ[name] for name in HANDED_ON if name in os.environ}
    return COMMAND.format(
        terminal="sane" if sys.stdin.isatty() else "raw -echo",
        folder=shlex.quote(str(CHECKOUT)),
        timeout_s=timeout_s,
        busybox=BUSYBOX,
        variables=" ".join(shlex.quote(f"{key}={value}") for key, value in variables.items()),
        command=shlex.join(command),
    )


def index_modules(kernel: Path) -> Path:
    """Return the folder of the kernel's modules, indexed as its installation would have done."""
    (folder,) = kernel.glob("lib/modules/*")
    if not (folder / "modules.dep").exists():
        subprocess.run([BUSYBOX, "depmod", "-b", kernel, folder.name], check=True)
    return folder


def load_order(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files of the modules and of all that they depend on, dependencies first."""
    needs = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        module, _, others = line.partition(":")
        needs[module] = others.split()
    files = {Path(module).name.partition(".ko")[0]: module for module in needs}
    done: dict[str, None] = {}

    def visit(module: str) -> None:
        for other in needs[module]:
            visit(other)
        done.setdefault(module)

    for name in names:
        visit(files[name])
    return (folder / module for module in done)


if __name__ == "__main__":
    sys.exit(main())
