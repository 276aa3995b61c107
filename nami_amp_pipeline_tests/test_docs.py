"""The pages: links lead somewhere, and the files, modules and make targets that they name are there."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(path for path in ROOT.glob("*.md")),
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "bench" / "README.md",
]
BEFORE = "## Names"
"""From here on, docs/upgrading.md has names of the version before."""


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named(pattern: str) -> Iterator[tuple[str, str]]:
    """What the pages name, with the page."""
    for page in PAGES:
        text = page.read_text("utf-8")
        if page.name == "upgrading.md":
            text = text.partition(BEFORE)[0]
        for name in re.findall(pattern, text):
            yield page.name, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found.read_text("utf-8")), target


def test_test_files_exist() -> None:
    files = set(named(r"`(test_\w+\.py)`"))
    assert files
    assert [(page, name) for page, name in files if not (ROOT / "nami_amp_pipeline_tests" / name).exists()] == []


def test_modules_that_are_run_exist() -> None:
    modules = set(named(r"python -m ((?:nami_amp_pipeline|bench)[\w.]*)"))
    assert modules
    assert [(page, name) for page, name in modules if importlib.util.find_spec(name) is None] == []


def test_make_targets_exist() -> None:
    targets = set(named(r"(?:^|`)make ([a-z]+)"))
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert targets
    assert [(page, name) for page, name in targets if f"\n{name}:" not in makefile] == []


def test_adrs_are_numbered_once() -> None:
    numbers = [path.name[:4] for path in (ROOT / "docs" / "adr").glob("*.md")]
    assert len(numbers) == len(set(numbers))
    for path in (ROOT / "docs" / "adr").glob("*.md"):
        assert path.read_text("utf-8").startswith(f"# {int(path.name[:4])}. ")
