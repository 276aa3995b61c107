"""The commands that the program and its pages quote."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from nami_amp_pipeline.alerts.kinds import Kind
from nami_amp_pipeline.amplitude.target import AMPLITUDE
from nami_amp_pipeline.operations import reasons

ROOT = Path(__file__).parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")})
SOURCES = sorted((ROOT / "nami_amp_pipeline").rglob("*.py"))
TEMPLATES = sorted((ROOT / "nami_amp_pipeline").rglob("*.html"))
PLACES = sorted({*(ROOT / "deploy").rglob("*.y*ml"), *(ROOT / "deploy").rglob("*.sh"), ROOT / "Makefile"})
"""Files that run commands, or say in a remark what to run."""
OLD_PAGES = ("CHANGELOG.md", "upgrading.md")
"""They may name what was."""

_QUOTED = re.compile(r"['`](nami-amp(?: [^'`\n]*)?)['`]")
_WHOLE = re.compile(r"nami-amp (?:identify|backfill) .*\S")
"""A text that is a command, to be quoted by another."""


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
        found = re.match(r"(?:.*\s)?(nami-amp [a-z].*)", line)
        if found and not _QUOTED.search(line):  # else it is what a command says
            yield found[1]
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`(nami-amp(?: [^`]*)?)`", rest)
    yield from re.findall(r"`[^`\n]*\s(nami-amp [^`]*)`", rest)
    yield from _QUOTED.findall(" ".join(rest.replace("\n> ", " ").split()))


def in_a_template(text: str) -> Iterator[str]:
    """Commands of a page of the Control Center, with X for what is filled in."""
    filled = re.sub(r"\{\{.*?\}\}", "X", text)
    yield from re.findall(r"<code>(nami-amp[^<]*)</code>", filled)


def quoted() -> dict[str, str]:
    """Commands as they are quoted, with where."""
    found: dict[str, str] = {}
    for path in SOURCES:
        for text in texts_of(path):
            joined = " ".join(text.split())
            for command in _QUOTED.findall(joined):
                found.setdefault(command, str(path.relative_to(ROOT)))
            if _WHOLE.fullmatch(text):
                found.setdefault(text, str(path.relative_to(ROOT)))
            for line in text.splitlines():
                example = re.match(r"\s+(nami-amp .*)", line)
                if example:
                    found.setdefault(example[1], str(path.relative_to(ROOT)))
    for path in PAGES:
        if path.name not in OLD_PAGES:
            for command in in_a_page(path.read_text()):
                found.setdefault(" ".join(command.split()), str(path.relative_to(ROOT)))
    for path in TEMPLATES:
        for command in in_a_template(path.read_text()):
            found.setdefault(command, str(path.relative_to(ROOT)))
    for path in PLACES:
        for command in re.findall(r"nami-amp [a-z][^\"'`\]\n).]*", path.read_text()):
            found.setdefault(command.strip(), str(path.relative_to(ROOT)))
    repairs = {AMPLITUDE.repair(code) for code in reasons.codes("halted")}
    actions = {reason.action or "" for reason in reasons.REASONS.values()}
    for text in {*repairs, *actions, *(kind.advice for kind in Kind)}:
        for command in _QUOTED.findall(" ".join(text.split())):
            found.setdefault(command, "a text of the running program")
    return found


def unquoted(text: str, names: Iterable[str]) -> list[str]:
    """Commands of these names that are neither between quotes nor a line of their own: no test would run them."""
    named = rf"nami-amp (?:{'|'.join(map(re.escape, names))})\b.*"
    return [found for line in text.splitlines() for found in re.findall(rf"\S.*?(?<!['`>])({named})", line)]


def words_of(command: str) -> str:
    """What a shell would be given, without comments, pipes and the brackets around what may be left out."""
    text = re.sub(r"\s+#.*| [|>&].*|;.*", "", command)
    return re.sub(r"\[(--?[^\]]*)\]", r"\1", text).replace("[", "").replace("]", "")
