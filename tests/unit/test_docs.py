# SPDX-License-Identifier: Apache-2.0
"""Documents that can be checked are: the settings page, links, names of files and functions."""

import re
from pathlib import Path

import pytest

from pycri import config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SOURCES = [path for path in (ROOT / "pycri").rglob("*.py") if "api" not in path.parts]
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)")
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w/]+\.py")
NAME = re.compile(r"(?:\w+\.)*(_?[a-z]\w*_\w+|_[a-z]\w+|[A-Z][a-z]+[A-Z]?\w*)")


def test_the_settings_page_is_up_to_date() -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    shown = page.partition("```toml\n")[2].partition("```\n")[0]
    assert shown == config.render_settings(config.Settings()), "run scripts/docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = {link for link in LINK.findall(page.read_text(encoding="utf-8")) if link}
    assert [link for link in targets if not (page.parent / link).exists()] == []


def test_the_architecture_names_what_there_is() -> None:
    """What is renamed is renamed there, too. The last section is of what is not there yet."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    page = page.partition("## Rooms for what comes next")[0]
    spans = CODE.findall(page)
    files = {path.relative_to(ROOT).as_posix() for path in SOURCES}
    unknown = [
        span
        for span in spans
        if FILE.fullmatch(span) and not any(f"/{file}".endswith(f"/{span}") for file in files)
    ]
    words = set(re.findall(r"\w+", "\n".join(path.read_text("utf-8") for path in SOURCES)))
    unknown += [span for span in spans if (name := NAME.fullmatch(span)) and name[1] not in words]
    assert unknown == []
