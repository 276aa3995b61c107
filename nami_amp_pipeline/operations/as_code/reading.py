"""Reads the file of the integrations, and says of every mistake in it where it is and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from nami_amp_pipeline import redaction
from nami_amp_pipeline.contract import did_you_mean
from nami_amp_pipeline.errors import Misconfigured, Mistakes
from nami_amp_pipeline.operations import key_values
from nami_amp_pipeline.operations.as_code.document import (
    AppEntry,
    Document,
    IntegrationEntry,
    KeyReference,
    Part,
)
from nami_amp_pipeline.operations.as_code.yaml_lines import Mistake, Place, Read, read
from nami_amp_pipeline.secrets import Secret

_MOST_BYTES: Final = 20_000_000
_KEYS: Final = ("api_key", "secret_key")
_LIKE_A_KEY: Final = re.compile(r"(?=(?:[^0-9]*[0-9]){4})[0-9A-Za-z_+=-]{16,}")
_NAMED_BY_PEOPLE: Final = (1, 3)
"""How deep ids of apps, which may well look like a key, and names of integrations stand."""

_IS: Final[Mapping[str, str]] = {
    "missing": "is missing",
    "bool_type": "must be true or false",
    "string_type": "must be text: put it between quotes",
    "list_type": "must be a list: put it between [ and ]",
    "dict_type": "must have fields of its own, one a line",
    "model_type": "must have fields of its own, one a line",
    "float_type": "must be a number, such as 0.15",
    "too_short": "must not be empty",
}
"""What is wrong, by the kind of pydantic's error."""


@dataclass(frozen=True)
class Keys:
    """The keys of one integration, and its secret fields; None where what is stored stays, or where there is none."""

    api_key: Secret | None
    secret_key: Secret | None
    secret_fields: Mapping[str, Secret | None] = field(default_factory=dict)

    @property
    def by_name(self) -> dict[str, Secret]:
        """All that were read; secret fields by ``secret_fields.NAME``."""
        found = {"api_key": self.api_key, "secret_key": self.secret_key}
        found |= {f"secret_fields.{name}": secret for name, secret in self.secret_fields.items()}
        return {name: secret for name, secret in found.items() if secret is not None}


@dataclass(frozen=True)
class Given:
    """A file that could be read.

    Attributes:
        document: what it says.
        name: what it is called where its integrations are shown.
        path: where it is, for messages.
        lines: the line of each place; empty of a saved plan.
    """

    document: Document
    name: str
    path: str
    lines: Read = field(default_factory=Read, compare=False)

    def mistakes(self, found: Iterable[Mistake]) -> Mistakes:
        """The error for mistakes that were found, in order of the lines."""
        lines = [(self.lines.line(mistake.place), mistake) for mistake in found]
        return _mistakes(
            self.path, [Mistake(mistake.place, line or mistake.line, mistake.message) for line, mistake in lines]
        )

    def keys(self) -> dict[str, Keys]:
        """The keys of all integrations, by ``<app_id>/<name>``.

        Raises:
            Mistakes: some cannot be read.
        """
        found: dict[str, Keys] = {}
        mistakes: list[Mistake] = []
        dotenv = key_values.in_dotenv()
        for app_id, name, entry in self.document.entries():
            place: Place = ("apps", app_id, "integrations", name)
            secrets: dict[Place, Secret | None] = {}
            for inside, reference in _references(entry):
                try:
                    secrets[inside] = _secret(reference, inside, dotenv)
                except Misconfigured as error:
                    redaction.add(*_pasted_keys([reference.env, reference.file]))
                    mistakes.append(Mistake((*place, *inside), None, str(error)))
            found[f"{app_id}/{name}"] = Keys(
                secrets.get(("api_key",)),
                secrets.get(("secret_key",)),
                {str(inside[1]): secret for inside, secret in secrets.items() if len(inside) > 1},
            )
        redaction.add(*(secret for keys in found.values() for secret in keys.by_name.values()))
        if mistakes:
            raise self.mistakes(mistakes)
        return found


def read_file(path: Path) -> Given:
    """Reads the file of the integrations.

    Raises:
        Misconfigured: it cannot be opened.
        Mistakes: it cannot be used; all that is wrong in it.
    """
    return read_text(text_of(path), str(path), _called(path))


def _called(path: Path) -> str:
    """What a file is called: its path from the folder in which the command runs; of a file elsewhere its name only.

    Two files of one checkout may have the same name then, and a checkout may be anywhere.
    """
    try:
        return path.absolute().resolve().relative_to(Path.cwd().resolve()).as_posix()
    except (OSError, ValueError):
        return path.name


def text_of(path: Path) -> str:
    """The text of a file.

    Raises:
        Misconfigured: it cannot be opened, or is no text.
    """
    try:
        with path.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise Misconfigured(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise Misconfigured("the path of the file cannot be used") from None
    if len(content) > _MOST_BYTES:
        raise Misconfigured(f"{path} has more than {_MOST_BYTES:,} bytes: no file of integrations is so large")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise Misconfigured(f"{path}:{line}: is not UTF-8 text") from None


def read_text(text: str, path: str, name: str) -> Given:
    """Reads the text of a file; see :func:`read_file`."""
    found = read(text)
    if found.mistakes and found.value is None:
        raise _mistakes(path, found.mistakes)
    try:
        document = Document.model_validate(found.value)
    except ValidationError as error:
        redaction.add(*_pasted_keys(found.value))
        raise _mistakes(path, [*found.mistakes, *_in_words(error, found)]) from None
    if found.mistakes:
        raise _mistakes(path, found.mistakes)
    return Given(document, document.name or name, path, found)


def _references(entry: IntegrationEntry) -> Iterator[tuple[Place, KeyReference]]:
    """Where keys and secret fields are found, each with its place in the entry."""
    yield ("api_key",), entry.api_key
    if entry.secret_key is not None:
        yield ("secret_key",), entry.secret_key
    for name, reference in entry.secret_fields.items():
        yield ("secret_fields", name), reference


def _secret(reference: KeyReference, inside: Place, dotenv: Mapping[str, str | None]) -> Secret | None:
    if reference.keep:
        return None
    if reference.env is not None:
        text = key_values.from_environment(reference.env, dotenv)
    else:
        text = key_values.from_file(Path(reference.file or ""))
    name = str(inside[-1])
    return (
        key_values.checked_line(text, name) if len(inside) > 1 else key_values.checked(text, name.removesuffix("_key"))
    )


def _mistakes(path: str, mistakes: Sequence[Mistake]) -> Mistakes:
    ordered = sorted(mistakes, key=lambda mistake: (mistake.line or 0, mistake.field))
    return Mistakes(
        [
            ": ".join(
                part
                for part in (f"{path}:{mistake.line}" if mistake.line else path, mistake.field, mistake.message)
                if part
            )
            for mistake in ordered
        ]
    )


def _in_words(error: ValidationError, found: Read) -> Iterator[Mistake]:
    for problem in error.errors(include_url=False):
        place: Place = tuple(step for step in problem["loc"] if step != "[key]")
        kind = problem["type"]
        if kind == "extra_forbidden":
            name = str(place[-1])
            shown = name if re.fullmatch(r"[A-Za-z_<-][\w<.-]{0,40}", name) and not _LIKE_A_KEY.search(name) else "…"
            place = place[:-1]
            known = _fields(place)
            instead = did_you_mean(name, known) or ": there are " + ", ".join(known)
            yield Mistake(place, found.line((*place, name)), f"unknown field {shown}{instead}")
            continue
        yield Mistake(place, found.line(place), _message(kind, place, problem))


def _message(kind: str, place: Place, problem: Any) -> str:
    if place and (place[-1] in _KEYS or place[-2:-1] == ("secret_fields",)) and kind in ("model_type", "string_type"):
        return "must say where the key is, such as {env: AMPLITUDE_KEY} or {file: key.txt}; the key itself stays out"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind == "literal_error":
        given = problem["input"]
        expected = str(problem["ctx"]["expected"])
        choices = re.findall(r"'([^']*)'", expected) or [expected.lower()]
        near = did_you_mean(given, choices) if isinstance(given, str) else ""
        return f"must be {'one of ' * (len(choices) > 1)}{', '.join(choices)}{near}"
    return _IS.get(kind, "cannot be used")


def _fields(place: Place) -> list[str]:
    """The fields that there are in a place."""
    part: type[Part] = Document
    if len(place) == 2:
        part = AppEntry
    elif len(place) == 4:
        part = IntegrationEntry
    elif len(place) > 4:
        part = KeyReference
    return [field.alias or name for name, field in part.model_fields.items()]


def _pasted_keys(value: Any, depth: int = 0) -> Iterator[str]:
    """What stands in a file and looks like a key, or stands where only the place of one should: no message has it."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name in _KEYS and isinstance(item, str):
                yield item
            if name == "secret_fields" and isinstance(item, Mapping):
                yield from (text for text in item.values() if isinstance(text, str))
            if depth not in _NAMED_BY_PEOPLE:
                yield from _pasted_keys(name)
            yield from _pasted_keys(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _pasted_keys(item, depth + 1)
    elif isinstance(value, str) and _LIKE_A_KEY.fullmatch(value.strip()):
        yield value
