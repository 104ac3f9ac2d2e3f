# SPDX-License-Identifier: Apache-2.0
"""What keeps the built-in network from being started, and that it says so."""

import os
from pathlib import Path

import pytest

from pycri import errors
from pycri.config import Settings
from pycri.network import nftables
from pycri.network.fitness import find_fault
from tests.integration.kernel.netns import Namespace, run_as_host
from tests.integration.kernel.networks import (
    SETTINGS,
    add_link,
    address_of,
    addresses,
    as_host,
    attach,
    ip,
    links,
    network,
    ruleset,
)


@as_host
async def test_a_range_in_use_on_the_host_is_a_problem_until_another_is_named(
    folder: Path,
) -> None:
    add_link("lan")
    ip("address", "add", "10.88.0.77/16", "dev", "lan")
    async with network(folder, start=False) as bridge:
        assert bridge.problem() is not None
        with pytest.raises(errors.Unavailable, match=r"overlaps with 10\.88\.0\.77/16"):
            await bridge.start()
        assert "overlaps" in (bridge.problem() or "")
        assert SETTINGS.bridge not in links()
        with Namespace() as pod:
            with pytest.raises(errors.Unavailable, match="overlaps"):
                await attach(bridge, pod)
            await bridge.set_pod_cidr("10.99.0.0/24")
            assert bridge.problem() is None
            assert address_of(await attach(bridge, pod)) == "10.99.0.2"


@as_host
async def test_an_interface_of_that_name_that_is_no_bridge_is_a_problem(folder: Path) -> None:
    add_link(SETTINGS.bridge)
    async with network(folder, start=False) as bridge:
        with pytest.raises(errors.Unavailable, match="not a bridge"):
            await bridge.start()


def test_a_host_without_nft_has_a_problem_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    async def body() -> None:
        async with network(tmp_path, start=False) as bridge:
            with pytest.raises(errors.Unavailable, match="program nft"):
                await bridge.start()
            assert "program nft" in (bridge.problem() or "")

    run_as_host(body)


@as_host
async def test_a_script_that_nft_refuses_is_told_with_its_words(folder: Path) -> None:
    with pytest.raises(errors.Unavailable, match="syntax error"):
        nftables.run_nft("no such/table")


@as_host
async def test_a_bridge_with_addresses_of_others_is_a_problem_and_left_alone(folder: Path) -> None:
    ip("link", "add", SETTINGS.bridge, "type", "bridge")
    ip("address", "add", "192.168.1.1/24", "dev", SETTINGS.bridge)
    async with network(folder, start=False) as bridge:
        with pytest.raises(errors.Unavailable, match=r"exists with the address 192\.168\.1\.1/24"):
            await bridge.start()
        assert addresses(SETTINGS.bridge) == {"192.168.1.1/24"}
        ip("address", "delete", "192.168.1.1/24", "dev", SETTINGS.bridge)
        await bridge.start()  # one without addresses is as good as ours
        assert addresses(SETTINGS.bridge) == {"10.88.0.1/24"}


@as_host
async def test_a_route_into_the_range_is_a_problem_and_a_wider_one_is_not(folder: Path) -> None:
    add_link("lan")
    ip("link", "set", "lan", "up")
    ip("route", "add", "10.88.0.0/16", "dev", "lan")
    async with network(folder) as bridge:
        ip("route", "add", "10.99.0.128/25", "dev", "lan")
        with pytest.raises(errors.InvalidRequest, match=r"with the route to 10\.99\.0\.128/25"):
            await bridge.set_pod_cidr("10.99.0.0/24")
        assert bridge.problem() is None


@as_host
async def test_check_finds_what_start_would_refuse(folder: Path) -> None:
    settings = Settings(state_dir=str(folder), network=SETTINGS)
    assert find_fault(settings) == ""
    assert ruleset() == ""
    async with network(folder):
        assert find_fault(settings) == ""
    add_link("lan")
    ip("address", "add", "10.88.0.77/16", "dev", "lan")
    assert "overlaps with 10.88.0.77/16 of interface lan" in find_fault(settings)
    ip("address", "delete", "10.88.0.77/16", "dev", "lan")
    os.environ["PATH"], path = str(folder), os.environ["PATH"]
    try:
        assert "program nft" in find_fault(settings)
    finally:
        os.environ["PATH"] = path
