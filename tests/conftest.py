# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests: the session, the leak check, images and a registry.

Those for nodes are in `world/nodes.py`.

Everything below tests/integration and tests/conformance needs root and is checked for leftovers,
test by test, module by module. Order is random, by a seed in the report's first lines (`--seed N`
repeats it); tests of one module stay together, because they may share a node.
"""

import os
import random
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.world import leaks, session
from tests.world.images import Images
from tests.world.registry import Registry

pytest_plugins = ("tests.world.nodes",)

SETTLE_S = 5.0 * session.TIME_FACTOR
"""How long the kernel and the daemon may take to free what a test has given up."""

ON_THE_HOST = {Path(__file__).parent / name for name in ("integration", "conformance")}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="order of the tests")
    parser.addoption(
        "--require", default="", help='needs ("root,registry") whose lack fails instead of skips'
    )
    parser.addoption("--storm-pods", type=int, default=60, help="pods of a storm; try 1000")
    parser.addoption("--vm", action="store_true", help="run what boots guests, for many minutes")


def pytest_configure(config: pytest.Config) -> None:
    session.claim_session()
    if config.option.seed is None:
        config.option.seed = secrets.randbelow(10_000)


def pytest_unconfigure() -> None:
    session.release_all()


def pytest_report_header(config: pytest.Config) -> str:
    return f"session {session.session_id}, order --seed {config.option.seed}"


def _missing_needs(config: pytest.Config) -> dict[str, str]:
    needs = {
        "root": os.geteuid() == 0,
        "registry": shutil.which("docker-registry") is not None,
        "vm": config.option.vm,
    }
    return {need: f"needs {need}" for need, met in needs.items() if not met}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = _missing_needs(config)
    required = set(config.option.require.split(","))
    if unmet := required & set(missing):
        raise pytest.UsageError(f"--require: this host lacks {', '.join(sorted(unmet))}")
    for item in items:
        if ON_THE_HOST & set(item.path.parents):
            item.add_marker(pytest.mark.root)
        for need, reason in missing.items():
            if item.get_closest_marker(need):
                item.add_marker(pytest.mark.skip(reason=reason))
    _shuffle(items, random.Random(config.option.seed))


def _shuffle(items: list[pytest.Item], source: random.Random) -> None:
    modules: dict[Path, list[pytest.Item]] = {}
    for item in sorted(items, key=lambda item: item.nodeid):
        modules.setdefault(item.path, []).append(item)
    order = list(modules)
    source.shuffle(order)
    for tests in modules.values():
        source.shuffle(tests)
    items[:] = [item for path in order for item in modules[path]]


@pytest.fixture(scope="session")
def scope(tmp_path_factory: pytest.TempPathFactory) -> Iterator[leaks.Scope]:
    """What belongs to this session; `folders[0]` is short, for the sake of unix socket paths."""
    folder = tempfile.mkdtemp(prefix=f"{leaks.NAME_PREFIX}{session.session_id}-")
    yield leaks.Scope(folders=(folder, str(tmp_path_factory.getbasetemp())))
    shutil.rmtree(folder)


@pytest.fixture(scope="module", autouse=True)
def _clean_module(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the module's last test if a fixture of the module leaves something on the host."""
    # Libraries open descriptors for the life of the process when they are first used.
    yield from _check_leaks(request, without=frozenset({"descriptor"}))


@pytest.fixture(autouse=True)
def _clean_test(request: pytest.FixtureRequest, _clean_module: None) -> Iterator[None]:
    """Fail a test that leaves something on the host."""
    yield from _check_leaks(request, without=frozenset())


def _check_leaks(request: pytest.FixtureRequest, *, without: frozenset[str]) -> Iterator[None]:
    if not ON_THE_HOST & set(request.path.parents) or os.geteuid() != 0:
        yield
        return
    scope: leaks.Scope = request.getfixturevalue("scope")
    before = leaks.read_snapshot(scope, without=without)
    yield
    leftovers = leaks.wait_clean(before, scope, timeout_s=SETTLE_S, without=without)
    if leftovers:
        pytest.fail("left behind:\n  " + "\n  ".join(leftovers), pytrace=False)


@pytest.fixture(scope="session")
def registry(scope: leaks.Scope) -> Iterator[Registry]:
    """A registry without authentication on loopback."""
    with Registry.start(Path(scope.folders[0], "registry")) as registry:
        scope.adopted.add(registry.pid)
        yield registry


@pytest.fixture(scope="session")
def images(registry: Registry) -> Images:
    """The test images; each is built and pushed to `registry` when it is first asked for."""
    return Images(registry)
