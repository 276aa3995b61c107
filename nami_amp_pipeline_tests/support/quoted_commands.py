"""The commands that the program and its pages quote."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from nami_amp_pipeline.alerts.kinds import Kind
from nami_amp_pipeline.amplitude.target import AMPLITUDE
from nami_amp_pipeline.operations import reasons

ROOT = Path(__file__).parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")})
SOURCES = sorted((ROOT / "nami_amp_pipeline").rglob("*.py"))
OLD_PAGES = ("CHANGELOG.md", "upgrading.md")
"""They may name what was."""

_QUOTED = re.compile(r"['`](nami-amp(?: [^'`\n]*)?)['`]")


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a module, with X for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)


def in_a_page(text: str) -> Iterator[str]:
    """Commands between backticks, and lines of examples."""
    text = text.replace("\\\n", " ")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in "\n".join(blocks).splitlines():
        found = re.match(r"\s*(?:\$ )?(nami-amp .*)", line)
        if found:
            yield found[1]
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (found for found in re.findall(r"`(nami-amp(?: [^`]*)?)`", rest))


def quoted() -> dict[str, str]:
    """Commands as they are quoted, with where."""
    found: dict[str, str] = {}
    for path in SOURCES:
        for text in texts_of(path):
            joined = " ".join(text.split())
            for command in _QUOTED.findall(joined):
                found.setdefault(command, str(path.relative_to(ROOT)))
            for line in text.splitlines():
                example = re.match(r"\s+(nami-amp .*)", line)
                if example:
                    found.setdefault(example[1], str(path.relative_to(ROOT)))
    for path in PAGES:
        if path.name not in OLD_PAGES:
            for command in in_a_page(path.read_text()):
                found.setdefault(" ".join(command.split()), str(path.relative_to(ROOT)))
    repairs = {AMPLITUDE.repair(code) for code in reasons.codes("halted")}
    actions = {reason.action or "" for reason in reasons.REASONS.values()}
    for text in {*repairs, *actions, *(kind.advice for kind in Kind)}:
        for command in _QUOTED.findall(" ".join(text.split())):
            found.setdefault(command, "a text of the running program")
    return found


def words_of(command: str) -> str:
    """What a shell would be given, without comments, pipes and the brackets around what may be left out."""
    text = re.sub(r"\s+#.*| [|>&].*|;.*", "", command)
    return re.sub(r"\[(--?[^\]]*)\]", r"\1", text).replace("[", "").replace("]", "")
