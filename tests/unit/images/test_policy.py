# SPDX-License-Identifier: Apache-2.0
import pytest

from pycri.images.policy import ImagePolicy
from pycri.images.reference import parse_reference

RULES = ImagePolicy(
    {
        "*": "reject",
        "docker.io": "verify",
        "docker.io/library": "accept",
        "docker.io/library/old": "reject",
        "*.example.test": "verify",
        "*.deep.example.test": "reject",
        "eu.example.test": "accept",
        "node.test:5000": "accept",
    }
)


@pytest.mark.parametrize(
    ("name", "verdict", "pattern"),
    [
        ("busybox", "accept", "docker.io/library"),
        ("old", "reject", "docker.io/library/old"),
        ("docker.io/library/older:1", "accept", "docker.io/library"),
        ("team/web", "verify", "docker.io"),
        ("docker.io/libraryx/web", "verify", "docker.io"),
        ("quay.io/web", "reject", "*"),
        ("us.example.test/web", "verify", "*.example.test"),
        ("eu.example.test/web", "accept", "eu.example.test"),
        ("a.deep.example.test/web", "reject", "*.deep.example.test"),
        ("example.test/web", "reject", "*"),
        ("node.test:5000/web", "accept", "node.test:5000"),
        ("node.test/web", "reject", "*"),
        ("node.test:5001/web", "reject", "*"),
    ],
)
def test_the_most_specific_rule_counts(name: str, verdict: str, pattern: str) -> None:
    assert RULES.judge(parse_reference(name)) == (verdict, pattern)


def test_without_a_rule_all_is_accepted() -> None:
    assert ImagePolicy({}).judge(parse_reference("web")) == ("accept", "*")
