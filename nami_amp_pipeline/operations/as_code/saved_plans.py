"""Plans in files: what was planned and on what it is based, sealed, without any key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import ValidationError

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.as_code.applying import Expected
from nami_amp_pipeline.operations.as_code.document import Document
from nami_amp_pipeline.operations.as_code.plan import Plan
from nami_amp_pipeline.operations.as_code.reading import Given
from nami_amp_pipeline.secrets import Cipher

_FORMAT: Final = "nami-amp integrations plan 1"


def save(plan: Plan, path: Path, cipher: Cipher) -> None:
    """Writes a plan; the same plan of the same store is the same file.

    Raises:
        Misconfigured: the file cannot be written, or is something else than a plan.
    """
    content: dict[str, Any] = {
        "format": _FORMAT,
        **plan.to_json(),
        "document": plan.given.document.to_json(),
        "versions": dict(plan.versions),
        "fingerprints": dict(plan.fingerprints),
    }
    content["seal"] = _seal(content, cipher)
    try:
        if path.is_file() and not is_saved(path.read_text("utf-8", "replace")):
            raise Misconfigured(f"{path} exists and is no plan: give --out another name")
        path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
    except (OSError, ValueError) as error:
        raise Misconfigured(f"cannot write {path}: {getattr(error, 'strerror', None) or 'no such path'}") from None


def is_saved(text: str) -> bool:
    """Whether a text is that of a saved plan; otherwise it may be a file of integrations."""
    return text.lstrip().startswith("{") and _FORMAT.rpartition(" ")[0] in text[:200]


def load(text: str, path: Path, cipher: Cipher) -> tuple[Given, bool, Expected]:
    """Reads a plan.

    Returns:
        What the file of the plan said, whether it prunes, and what it expects.

    Raises:
        Misconfigured: it is damaged or was changed, or is of another installation or version.
    """
    try:
        content = orjson.loads(text)
        seal = content.pop("seal")
    except (orjson.JSONDecodeError, KeyError, AttributeError):
        raise Misconfigured(f"{path} is a damaged plan: plan again") from None
    if content.get("format") != _FORMAT:
        raise Misconfigured(f"{path} was made by another version of this program: plan again")
    if seal != _seal(content, cipher):
        raise Misconfigured(
            f"{path} was changed, is of another installation, or the encryption key was rotated since: plan again"
        )
    try:
        document = Document.model_validate(content["document"])
    except ValidationError:  # sealed by an older program that allowed it
        raise Misconfigured(f"{path} was made by another version of this program: plan again") from None
    given = Given(document, content["file"], str(path))
    return given, content["prune"], Expected(content["changes"], content["versions"], content["fingerprints"])


def _seal(content: dict[str, Any], cipher: Cipher) -> str:
    return cipher.fingerprint(orjson.dumps(content, option=orjson.OPT_SORT_KEYS).decode(), "a plan")
