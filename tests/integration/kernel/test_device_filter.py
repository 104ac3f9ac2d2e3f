# SPDX-License-Identifier: Apache-2.0
"""The device filter of version 2 groups, asked by a real process in a real group."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycri.kernel import cgroup2, cgroups, device_filter
from pycri.kernel.process import fork
from pycri.model.plan import DeviceRule

MOUNTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")


@pytest.fixture
def group() -> Iterator[str]:
    root = next((m for m in MOUNTS if os.path.exists(f"{m}/cgroup.controllers")), None)
    if root is None:
        pytest.skip("no cgroup2 mount on this host")
    path = f"{root}/pycri-test-{uuid.uuid4().hex[:8]}"
    cgroup2.create(path, root, ())
    yield path
    assert cgroups.remove(path)


def outcomes(group: str, folder: Path, rules: tuple[DeviceRule, ...]) -> str:
    """Return what a process in the group may do, as letters: r(ead null), w(rite null),
    z(ero read), m(knod null)."""
    device_filter.attach(group, rules)
    results = folder / "results"

    def child() -> None:
        os.write(cgroup2.open_door(group), b"0")
        done = ""
        for letter, path, flags in (
            ("r", "/dev/null", os.O_RDONLY),
            ("w", "/dev/null", os.O_WRONLY),
            ("z", "/dev/zero", os.O_RDONLY),
        ):
            try:
                os.close(os.open(path, flags))
                done += letter
            except PermissionError:
                continue
        try:
            os.mknod(folder / "node", 0o020666, os.makedev(1, 3))
            done += "m"
        except PermissionError:
            pass
        results.write_text(done)

    _, status = os.waitpid(fork(child), 0)
    assert status == 0
    return results.read_text()


def rule(text: str) -> DeviceRule:
    kind, numbers, access = text.split()
    major, minor = (None if n == "*" else int(n) for n in numbers.split(":"))
    return DeviceRule(kind=kind, major=major, minor=minor, access=access)


@pytest.mark.root
@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ((), ""),
        (("a *:* rwm",), "rwzm"),
        (("c 1:3 rwm",), "rwm"),
        (("c 1:3 r",), "r"),
        (("c 1:* rw",), "rwz"),
        (("b *:* rwm",), ""),
        (("c *:* m",), "m"),
        (("b 8:0 rwm", "c 1:3 w", "c 1:5 r"), "wz"),
    ],
)
def test_a_process_uses_the_devices_of_the_rules_and_no_others(
    group: str, tmp_path: Path, rules: tuple[str, ...], expected: str
) -> None:
    assert outcomes(group, tmp_path, tuple(map(rule, rules))) == expected
