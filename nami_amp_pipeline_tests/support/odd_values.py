"""A grammar of odd values: what a row of the warehouse may hold although nobody would put it there on purpose."""

from __future__ import annotations

import json
import random
from typing import Any

_NUMBERS = ("1e999", "-1e400", "1" + "0" * 400, "1e-999", "0." + "3" * 900, "-0", "1E+2", "12345678901234567890123")
_FAR = (2**63 - 1, -(2**63) + 1, 317_300_000_000_000_000, -63_500_000_000_000_000)
"""Times that no calendar has, in µs since the epoch: both infinities as DuckDB writes them, the years 12024 and -43."""

_ESCAPES = ("\\ud83d", "\\udc00", "\\ud83d\\ud83d", "\\ud83d\\ude00", "\\\\ud83d", "\\u0000", "\\uFFFF")
_BROKEN = (
    None,
    "",
    "{",
    "[]",
    "nul",
    '{"a":1,}',
    '{"a":NaN}',
    '{"a":\\ud83d}',
    '{"a":"\\ud8',
    "\ufeff{}",
    "{}{}",
    '"{}"',
)


def odd_field(rng: random.Random) -> str:
    """A field of a JSON object, as text: valid by the grammar of RFC 8259."""
    kind = rng.randrange(6)
    name = json.dumps(
        rng.choice(("odd", "", "a.b", "ключ", "amount", "N", "x" * 3_000)), ensure_ascii=rng.random() < 0.5
    )
    if kind == 0:
        return f"{name}:{rng.choice(_NUMBERS)}"
    if kind == 1:
        return f'{name}:"{rng.choice(_ESCAPES)}{rng.choice(_ESCAPES)}"'
    if kind == 2:
        return f'"{rng.choice(_ESCAPES)}":true'
    if kind == 3:
        depth = rng.choice((3, 60, 400))
        return f"{name}:{'[' * depth}{']' * depth}"
    if kind == 4:
        return f'{name}:"{rng.choice((", ]", ": NaN", "[Infinity", ",}"))}"'
    return f'{name}:1,{name}:{rng.choice(_NUMBERS)},{name}:"last"'


def odd_row(rng: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    """The row with something odd about it."""
    kind = rng.randrange(13)
    payload = row["payload"]
    if kind < 5 and payload and payload.startswith("{") and payload.endswith("}"):
        rest = payload[1:]
        return {**row, "payload": "{" + odd_field(rng) + ("," if rest != "}" else "") + rest}
    if kind == 5:
        return {**row, "user_id": rng.choice((None, "", "\u00fc" * 700, "\0"))}
    if kind == 6:
        return {**row, "created_date": rng.choice((None, *_FAR))}
    if kind == 7:
        return {**row, "id": rng.choice((None, "", "x" * 1_025))}
    if kind == 8:
        return {**row, "event_type": rng.choice((None, "", "user." + "x" * 300))}
    if kind == 10:
        return {**row, "app_id": rng.choice((None, "", "APP"))}
    if kind == 11:
        return {**row, "payload": '{"filling":"' + "x" * 1_000_000 + '"}'}
    return {**row, "payload": rng.choice(_BROKEN)}
