# SPDX-License-Identifier: Apache-2.0
"""Which images may be pulled: one rule per registry or repository, the most specific counts. Pure.

registry.example          all of a registry; with its port, if one is named
registry.example/team     a repository, and all below it
*.example                 registries below a domain
*                         what no other rule is about; without this rule: accept
"""

from collections.abc import Mapping
from typing import Literal

from pycri.images.reference import Reference

Verdict = Literal["accept", "reject", "verify"]


class ImagePolicy:
    """The rules of a node, by their pattern."""

    def __init__(self, rules: Mapping[str, Verdict]) -> None:
        self._rules = dict(rules)

    def judge(self, reference: Reference) -> tuple[Verdict, str]:
        """Return what is to be done with an image, and the pattern of the rule that says so."""
        for pattern in _patterns(reference):
            if verdict := self._rules.get(pattern):
                return verdict, pattern
        return "accept", "*"


def _patterns(reference: Reference) -> list[str]:
    """Return all patterns that are about an image, the most specific first."""
    parts = reference.path.split("/")
    below = ["/".join((reference.host, *parts[:count])) for count in range(len(parts), 0, -1)]
    labels = reference.host.split(".")
    domains = ["*." + ".".join(labels[start:]) for start in range(1, len(labels))]
    return [*below, reference.host, *domains, "*"]
