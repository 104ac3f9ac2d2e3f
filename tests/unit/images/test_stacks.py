# SPDX-License-Identifier: Apache-2.0
"""What stands for stacks of layers, and what is mounted for them."""

import hashlib

from pycri.model.ids import Digest
from pycri.model.image import LayerRow, chain_ids, layer_keys, stack_keys

A, B, C = (Digest(f"sha256:{letter * 64}") for letter in "abc")


def settlement(*stack: Digest, fingerprint: int = 1) -> dict[Digest, LayerRow]:
    key = chain_ids(stack)[-1]
    return {key: LayerRow(digest=key, size_bytes=0, inodes=0, fingerprint=fingerprint, stack=stack)}


def test_a_chain_id_stands_for_a_layer_and_all_below_it() -> None:
    """As the image-spec defines it: ChainID(A, B) = digest("ChainID(A) DiffID(B)")."""
    both = "sha256:" + hashlib.sha256(f"{A} {B}".encode()).hexdigest()
    assert (chain_ids(()), chain_ids((A,))) == ((), (A,))
    assert chain_ids((A, B)) == (A, both)
    three = "sha256:" + hashlib.sha256(f"{both} {C}".encode()).hexdigest()
    assert chain_ids((A, B, C))[2] == three
    assert layer_keys((A, B)) == {A, B, both}


def test_a_settlement_lies_above_its_layer() -> None:
    rows = settlement(A, B) | settlement(A, B, C)
    two, three = chain_ids((A, B, C))[1:]
    assert stack_keys((A, B, C), rows) == (three, C, two, B, A)
    assert stack_keys((B, A, C), rows) == (C, A, B)
    assert stack_keys((A, B, C), {}) == (C, B, A)
    assert stack_keys((), rows) == ()


def test_a_settlement_that_holds_nothing_is_not_mounted() -> None:
    assert stack_keys((A, B), settlement(A, B, fingerprint=0)) == (B, A)


def test_a_layer_that_is_there_twice_is_mounted_where_it_is_higher() -> None:
    assert stack_keys((A, B, A), settlement(A, B)) == (A, chain_ids((A, B))[1], B)


def test_a_row_of_a_layer_is_no_settlement() -> None:
    rows = {A: LayerRow(digest=A, size_bytes=0, inodes=0, fingerprint=1)}
    assert stack_keys((A, B), rows) == (B, A)
