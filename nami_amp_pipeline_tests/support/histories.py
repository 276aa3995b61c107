"""Strategies for small, nasty histories and for integrations, to hold the pipeline against the reference.

A history is a list of ticks, each what one reading of the warehouse newly finds: rows as dicts by column name, with
times as datetimes in UTC. `ingested_at` is different in every row and, but for rows committed late, grows from tick to
tick; `created_date` is taken from a few times only, so that ties are the rule.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pyarrow as pa
from hypothesis import strategies as st

from nami_amp_pipeline_tests.support.reference import GROUPS, RESERVED, SELECTABLE, Row, Settings

History = list[list[dict[str, Any]]]

BASE: Final = datetime(2026, 9, 1, tzinfo=UTC)
"""When the first tick's first row is loaded."""
LATE_COMMIT: Final = timedelta(minutes=9)
"""How much smaller the `ingested_at` of a row committed late may be than one that an earlier tick has read."""

UNKNOWN_TYPES: Final = (
    "weird",
    "user",
    "purchase.updated",
    "user.updated",
    "user.subscription",
    "device.session.start",
    "user.entitlement.transferred",
    "user.subscription.renewed.twice",
    "User.subscription.renewed",
    "users.subscription.renewed",
)

CREATED: Final = (
    datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(1960, 2, 29, 12, 0, 0, 1, tzinfo=UTC),
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(2026, 8, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(2026, 9, 1, tzinfo=UTC),
    datetime(2026, 9, 1, 0, 0, 0, 1, tzinfo=UTC),
    datetime(2026, 9, 1, 0, 0, 0, 999, tzinfo=UTC),
    datetime(2026, 9, 1, 0, 0, 0, 1_000, tzinfo=UTC),
    datetime(2026, 9, 1, 9, 30, 15, 123_456, tzinfo=UTC),
    datetime(2026, 9, 2, 1, 2, 3, tzinfo=UTC),
)

MALFORMED: Final = (
    None,
    "",
    " ",
    "null",
    "[]",
    '[{"id":"1"}]',
    '"text"',
    "17",
    "true",
    '{"a":1',
    "{'a':1}",
    "{}x",
    '{"a":01}',
    '{"a":"\x01"}',
    '{"a":"\\ud800"}',
    "/**/{}",
    "\ufeff{}",
    "NaN",
)
"""Payloads that are not a JSON object."""
LOOSE: Final = ('{"a":1,}', '{"device_id":"d","a":NaN}', '{"a":-Infinity}', '{"devices":[{"id":"d"},]}', "Infinity")
"""Payloads that some readers take for a JSON object, although JSON has no trailing commas and no NaN."""

_FAR: Final = ("infinity", "-infinity", "12026-01-01 00:00:00+00")
"""Times that no calendar has, as every database reads them."""
ODD: Final[dict[str, tuple[str | None, ...]]] = {
    "id": (None, "", "x" * 1_025),
    "app_id": (None, ""),
    "event_type": (None, "", "user." + "x" * 300),
    "user_id": (None, "", "ü" * 700),
    "created_date": (None, *_FAR),
    "ingested_at": (None, *_FAR),
    "payload": (
        '{"filling":"' + "x" * 1_000_000 + '"}',
        '{"deep":' + "[" * 400 + "]" * 400 + "}",
        '{"n":1e999,"m":-1e400,"k":1' + "0" * 400 + "}",
        '{"half":"\\ud83d","pair":"\\ud83d\\ude00"}',
    ),
}
"""What a column may hold although nobody would put it there on purpose."""

_TEXTS: Final = (
    "",
    "plain",
    'quo"te',
    "back\\slash",
    "new\nline\ttab",
    "\u0001\u001f\u007f",
    "\u2028\u2029\ufeff",
    "e\u0301",
    "é",
    "\U0001f600👩‍👩‍👧",
    "مرحبا",
    "\uffff\ue000",
    "'; drop table t; --",
    "$.a[0]",
    "null",
    "true",
    "</script>",
    " padded ",
)
_KEYS: Final = (
    "a",
    "A",
    "",
    " ",
    "a.b",
    "a/b",
    "a[0]",
    "*",
    "$",
    "~1",
    'k"ey',
    "k'ey",
    "k\\ey",
    "ключ",
    "\U0001f600",
    "\u0001",
    "event_id",
    "ip",
    "time",
    "external_id",
    "insert_id",
    "user_properties",
    "namiml_event_category",
    "namiml_event_subcategory1",
)
# What no Python number is written as: put into the JSON text in place of a mark.
_NUMBER_TEXTS: Final = ("1e3", "1E+2", "-0", "-0.0", "0.10", "1e-7", "100.000", "12345678901234567890.5")
_MARK: Final = "\ue123"


def _mostly(common: st.SearchStrategy[Any], *rare: st.SearchStrategy[Any], odds: int = 4) -> st.SearchStrategy[Any]:
    """`common`, but one time in `odds` + 1 one of `rare`; `one_of` knows no odds, as it takes each strategy once."""
    others = st.one_of(*rare)
    return st.integers(0, odds).flatmap(lambda number: others if number == odds else common)


_text = st.one_of(
    st.sampled_from(_TEXTS),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0" + _MARK), max_size=8),
)
_number = st.one_of(
    st.sampled_from((0, 1, -1, 2, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 10**20, 0.1, -0.0, 1.5)),
    st.integers(-(2**63), 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(_NUMBER_TEXTS).map(lambda text: f"{_MARK}{text}{_MARK}"),
)
_scalar = st.one_of(_text, _number, st.booleans(), st.none())
_container: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.just([]), st.just({})),
    lambda inner: st.one_of(
        st.lists(st.one_of(inner, _scalar), max_size=2),
        st.dictionaries(st.sampled_from(_KEYS), st.one_of(inner, _scalar), max_size=2),
    ),
    max_leaves=4,
)
_any = _mostly(_scalar, _container, odds=3)

_long_id = st.builds(
    lambda text, times, end: text * times + end,
    st.sampled_from(("x", "é", '"', "\\", "\u0001", "\U0001f600", "e\u0301")),
    st.integers(40, 1_030),
    st.sampled_from(("", "1", "2", "3")),
)
_plain_id = st.sampled_from(
    ("premium", "sports", "Premium", "premium ", "é", "e\u0301", "\U0001f600", "\uffff", "z", "10", "9")
)
# Ids that are numbers: only such as every writer of JSON writes alike.
_number_id = st.sampled_from((0, 7, 9, 10, -1, 2**53 + 1, 2**63 - 1, 1.5, -0.25))
_id = _mostly(_plain_id, _text, _number_id, _long_id, st.booleans(), st.none(), _container, odds=3)


def _object_of(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with these fields; at times any of them is absent, or there is one more that nobody knows."""
    return _mostly(st.fixed_dictionaries(fields), st.fixed_dictionaries({}, optional={**fields, "unknown": _any}))


def _array_of(element: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Arrays of mostly `element`, with elements in between that have no business there."""
    return st.lists(_mostly(element, _any, odds=6), max_size=4)


def _group(name: str, proper: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A group's value: mostly proper, at times null or of another type."""
    wrong = _any.filter(lambda value: not isinstance(value, GROUPS.get(name, list)))
    return _mostly(proper, st.none(), wrong, odds=6)


def _many(template: str) -> st.SearchStrategy[list[Any]]:
    """Forty objects with ids (and platforms) of about this shape: more than Amplitude keeps of an array."""
    return st.integers(20, 60).map(
        lambda count: [
            {"id": template.format(n), "platform": {"id": f"p{n % 5}"}, "entitlement_ref_id": template.format(n)}
            for n in range(count)
        ]
    )


_forty = st.sampled_from(("5d1f0000-0000-4000-a000-{:012d}", "{:030d}", '"{:020d}"', "é{:024d}")).flatmap(_many)
_entitlements = _mostly(_array_of(_object_of({"entitlement_ref_id": _id, "sku_ref_id": _id, "name": _text})), _forty)
_platform = _mostly(_object_of({"id": _id, "name": _text}), _any)
_devices = _mostly(_array_of(_object_of({"id": _id, "platform": _platform})), _forty)
_flag = _mostly(st.booleans(), _any, odds=6)
_journey = _object_of(
    {
        "former_subscriber": _flag,
        "in_grace_period": _flag,
        "in_trial_period": _flag,
        "in_intro_offer_period": _flag,
        "is_cancelled": _flag,
    }
)


@st.composite
def _reserved(draw: st.DrawFn) -> str:
    """A reserved id in some mixture of cases, with space around it."""
    word = draw(st.sampled_from(sorted(RESERVED)))
    case = draw(st.sampled_from((str.lower, str.upper, str.title, str.swapcase)))
    return draw(_space) + case(word) + draw(_space)


_space = st.sampled_from(("", "", " ", "  ", "\t", "\n", " \r\n"))
_account = _mostly(
    st.sampled_from(("account-1", "account-1", "account-2", " account-1", "account-1\n", "ACCOUNT-1", "7", "ü✓")),
    _reserved(),
    _number_id,
    _text,
    _long_id,
    st.booleans(),
    st.none(),
    _container,
)
_entry = _mostly(
    st.builds(lambda value: {"key": "external_id", "type": "uuid", "value": value}, _account),
    st.just({"key": "original_transaction_id", "type": "original_transaction_id", "value": "1000000500000000"}),
    _object_of({"key": st.one_of(st.just("external_id"), st.just("External_Id"), _any), "value": _account}),
    odds=2,
)
_external_ids = _array_of(_entry)

_transaction: Final[dict[str, st.SearchStrategy[Any]]] = {
    "amount": _mostly(st.sampled_from((9.99, 0, 49, -9.99, 0.0)), _number, _any),
    "quantity": _mostly(
        st.sampled_from((1, 2, "1", "2", "-1", "007", 0)),
        st.sampled_from((2.0, 2.5, "2.0", "2.5", "", " 2", "+2", "1e3", "two", "9" * 30, 2**63, "٣")),
        _any,
        odds=1,
    ),
    "sku": _mostly(_plain_id, _any),
    "currency": _mostly(st.sampled_from(("USD", "EUR", "usd")), _any),
    "purchase_env": _mostly(st.just("production"), st.sampled_from(("sandbox", "Sandbox", "sandbox ")), _any, odds=2),
}


def _write(payload: dict[str, Any], *, ascii_only: bool, indent: int | None, around: str) -> str:
    text = json.dumps(payload, ensure_ascii=ascii_only, indent=indent)
    for mark in (_MARK, "\\ue123"):
        for number in _NUMBER_TEXTS:
            text = text.replace(f'"{mark}{number}{mark}"', number)
    return around + text + around


def _created_text(created: datetime) -> st.SearchStrategy[str]:
    """A time in each of Nami's spellings."""
    exact = created.strftime("%Y-%m-%dT%H:%M:%S.%f")
    return st.sampled_from((exact + "+00:00", exact + "Z", created.strftime("%Y-%m-%dT%H:%M:%SZ")))


_GROUPS: Final = {
    "active_entitlements": _group("active_entitlements", _entitlements),
    "devices": _group("devices", _devices),
    "customer_journey_state": _group("customer_journey_state", _journey),
    "external_ids": _group("external_ids", _external_ids),
}
_sale = _object_of(_transaction)
_event_type = _mostly(
    st.one_of(st.sampled_from(SELECTABLE), st.sampled_from(("device.impression", "device.transaction"))),
    st.sampled_from(UNKNOWN_TYPES),
)
_USERS: Final = ("user-1", "user-2", " user-1", "user-1\n", 'é"\\', "NULL", "0")
_ID_STARTS: Final = ("", "", "9", "A", "a", "é", "\uffff", "\U0001f600", '"\\')
PATTERNS: Final = (*SELECTABLE, "user.*", "device.*", "user.subscription.*", "user.journey.*", "user.journey.trial.*")
_NAMES: Final = ("Paywall Shown", 'Été "50%"', "user.subscription.renewed", "\U0001f600", "back\\slash")


@st.composite
def payloads(draw: st.DrawFn, event_type: str, ident: str, user_id: str, created: datetime, nul: bool) -> str:
    """An event's payload: JSON text of an object, proper enough to be delivered and awkward in every field."""
    payload: dict[str, Any] = draw(st.dictionaries(st.sampled_from(_KEYS), _any, max_size=3))
    copies = {"id": ident, "event_type": event_type, "created_date": draw(_created_text(created)), "user_id": user_id}
    for key, value in copies.items():
        # The table's columns count: the copies may be missing, or tell something else.
        choice = draw(st.integers(0, 9))
        if choice:
            payload[key] = draw(_any) if choice == 1 else value
    payload["event_platform"] = draw(st.sampled_from(("apple", "google", "roku", None)))
    if event_type.startswith("device") or draw(st.integers(0, 9)) == 0:
        if draw(st.integers(0, 4)):
            payload["device_id"] = draw(
                _mostly(st.sampled_from(("device-1", "device-2")), st.sampled_from((" d ", "", " ", "0")), _id)
            )
        if event_type == "device.transaction":
            payload |= draw(_sale)
    for name, strategy in _GROUPS.items():
        if draw(st.integers(0, 9)) < (7 if event_type.startswith("user") else 1):
            payload[name] = draw(strategy)
    if nul:
        payload["nul"] = "a\0b"
    return _write(
        payload,
        ascii_only=draw(st.booleans()),
        indent=draw(st.sampled_from((None, None, None, 1))),
        around=draw(st.sampled_from(("", "", "", " ", "\n"))),
    )


@st.composite
def histories(
    draw: st.DrawFn,
    *,
    max_ticks: int = 4,
    max_rows: int = 7,
    other_app: bool = True,
    nul: bool = False,
    loose: bool = True,
    odd: bool = True,
) -> History:
    """Histories of the app `app`.

    Args:
        draw: Hypothesis' own.
        max_ticks: At most so many ticks; some may be empty.
        max_rows: At most so many rows in a tick.
        other_app: Now and then a row of the app `other`, which shares users and event ids with `app`.
        nul: Payloads may have the character U+0000 in a text, which not every database can hold.
        loose: Payloads may be of `LOOSE`, which not every JSON reader refuses.
        odd: Any column may hold something of `ODD`.
    """
    malformed = st.sampled_from(MALFORMED + LOOSE if loose else MALFORMED)
    history: History = []
    rows: list[dict[str, Any]] = []
    users = draw(st.lists(st.sampled_from(_USERS), min_size=1, max_size=3))
    for number in range(draw(st.integers(1, max_ticks))):
        tick: list[dict[str, Any]] = []
        for _ in range(draw(st.integers(0, max_rows))):
            ingested = BASE + timedelta(hours=number, seconds=len(rows))
            chance = draw(st.integers(0, 99))
            if number and chance < 10:
                ingested += -timedelta(hours=1) - LATE_COMMIT + timedelta(microseconds=1)
            if rows and chance % 10 < 2:
                row = {**draw(st.sampled_from(rows)), "ingested_at": ingested}
                if chance % 20 == 0:
                    row["payload"] = draw(st.one_of(malformed, st.just('{"note":"not the first"}')))
            else:
                row = _new_row(draw, len(rows), draw(st.sampled_from(users)), ingested, nul)
                if chance % 20 == 5:
                    row["payload"] = draw(malformed)
                if other_app and chance % 20 == 6:
                    row["app_id"] = "other"
            if odd and chance % 10 == 9:
                column = draw(st.sampled_from(sorted(ODD)))
                row = {**row, column: draw(st.sampled_from(ODD[column]))}
            tick.append(row)
            rows.append(row)
        history.append(draw(st.permutations(tick)))
    return history


def _new_row(draw: st.DrawFn, number: int, user_id: str, ingested: datetime, nul: bool) -> dict[str, Any]:
    event_type = draw(_event_type)
    ident = draw(st.sampled_from(_ID_STARTS)) + str(number)
    created = draw(st.sampled_from(CREATED))
    return {
        "id": ident,
        "app_id": "app",
        "event_type": event_type,
        "user_id": user_id,
        "created_date": created,
        "ingested_at": ingested,
        "payload": draw(payloads(event_type, ident, user_id, created, nul)),
    }


def times(history: Sequence[object]) -> list[datetime]:
    """When each tick reads: all its rows are loaded by then, and none of the next tick's that are not late."""
    return [BASE + timedelta(hours=number, minutes=40) for number in range(len(history))]


_PRIVATE = (
    "amount", "currency", "customer_journey_state", "device_id", "devices", "active_entitlements", "event_platform",
    "purchase_env", "quantity", "sku", "text",
)  # fmt: skip
"""Payload fields that an integration may want to keep to itself."""


def integrations(*, wait_for_login: bool = True) -> st.SearchStrategy[Settings]:
    """Settings of an integration; `wait_for_login` says whether that policy is among them."""
    policies = ("skip", "nami_user_id", "device_id", *(("wait_for_login",) if wait_for_login else ()))
    return st.builds(
        Settings,
        user_id=_mostly(st.just("external_id"), st.just("nami_user_id"), odds=3),
        anonymous=st.sampled_from(policies),
        events=_mostly(
            st.just(("all",)),
            st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=4, unique=True).map(tuple),
            odds=2,
        ),
        rename=st.dictionaries(st.sampled_from((*SELECTABLE, "weird")), st.sampled_from(_NAMES), max_size=3),
        start_from=_mostly(st.none(), st.integers(0, 3 * 3600).map(lambda seconds: BASE + timedelta(seconds=seconds))),
        sandbox=_mostly(st.just("send"), st.sampled_from(("skip", "only")), odds=2),
        exclude=_mostly(
            st.just(()), st.lists(st.sampled_from(_PRIVATE), min_size=1, max_size=4, unique=True).map(tuple), odds=2
        ),
        revenue=_mostly(st.just("gross"), st.just("none"), odds=4),
    )


def to_batch(rows: Sequence[Row]) -> pa.RecordBatch:
    """Rows as a batch of the warehouse table."""
    instant = pa.timestamp("us", tz="UTC")
    types = dict.fromkeys(("id", "app_id", "event_type", "user_id"), pa.string())
    schema = pa.schema(types | {"created_date": instant, "ingested_at": instant, "payload": pa.string()})
    return pa.RecordBatch.from_pylist([dict(row) for row in rows], schema=schema)
