# SPDX-License-Identifier: Apache-2.0
"""How far a pull is, seen while a registry takes its time."""

import asyncio
from pathlib import Path

from pycri.images.progress import LayerProgress
from pycri.images.store import ImageStore
from tests.world.image_stores import FaultyRegistry, open_store
from tests.world.images import build_layered


async def wait_for(store: ImageStore, name: str, states: list[str]) -> tuple[LayerProgress, ...]:
    """Wait until the layers of a pull are in these states, bottom first."""
    layers: tuple[LayerProgress, ...] = ()
    for _ in range(1000):
        layers = store.pull_progress(name, None)
        if [layer.state for layer in layers] == states:
            return layers
        await asyncio.sleep(0.01)
    raise AssertionError(f"not {states}: {layers}")


def test_all_who_pull_one_image_see_its_layers_come(tmp_path: Path) -> None:
    built = build_layered()

    async def main() -> None:
        async with FaultyRegistry.start(built) as registry, open_store(tmp_path) as store:
            assert store.pull_progress(registry.reference, None) == ()
            registry.gate.clear()
            registry.faults[built.config] = registry.serve_open
            registry.faults[built.layers[1]] = registry.serve_open
            pulls = [asyncio.create_task(store.pull(registry.reference, None)) for _ in range(2)]
            # Three come at once: the second is there soon, and makes place for the fourth.
            states = ["fetching", "whole", "fetching", "fetching"]
            layers = await wait_for(store, registry.reference, states)
            assert [layer.digest for layer in layers] == list(built.layers)
            sizes = [len(built.blobs[digest]) for digest in built.layers]
            assert [layer.size_bytes for layer in layers] == sizes
            assert [layer.received_bytes for layer in layers] == [0, sizes[1], 0, 0]
            registry.gate.set()
            images = await asyncio.gather(*pulls)
            assert images[0] == images[1]
            assert registry.asked(built.layers[0]) == 1
            assert store.pull_progress(registry.reference, None) == ()

    asyncio.run(main())
