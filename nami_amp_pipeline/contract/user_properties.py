"""How a user property is declared: by a path or by SQL over the payload, or as what an enrichment gives."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

GROUPS: Final[Mapping[str, str]] = {
    "entitlements": "active_entitlements[]",
    "devices": "devices[]",
    "journey": "customer_journey_state",
}
"""The groups of a user's state and where a payload has them; ``[]`` is an array of objects. A group counts as a whole:
all its properties are from the newest event that has it. They are sent in this order."""

ENRICHED: Final = "enrichments"
"""The group of what enrichments give: it is in no payload, and is sent last."""

Kind = Literal["texts", "text", "number", "flag"]
KINDS: Final[Mapping[Kind, str]] = {
    "texts": "an array of texts",
    "text": "a text",
    "number": "a number",
    "flag": "a boolean",
}
"""What a value can be, in words."""

TEXT_CHARACTERS: Final = 1024
"""Amplitude truncates a text over this many characters."""

_WORDS: Final = (
    "app_id created_date devices enriched enriched_text enrichments entitlements event_type external_id "
    "former_subscriber given has_active_entitlement has_devices has_entitlements has_journey has_scalar_group id "
    "is_given is_user journey lengths parsed payload raised row text texts truncated_arrays user_id user_properties "
    "all analyse analyze and anti any array as asc asof asymmetric at authorization binary both by case cast check "
    "collate collation column columns concurrently constraint create cross default deferrable desc describe "
    "distinct do else end except false fetch for foreign freeze from full generated glob group having ilike in "
    "initially inner intersect into is isnull join lambda lateral leading left like limit map natural not notnull "
    "null offset on only or order outer overlaps pivot pivot_longer pivot_wider placing positional primary qualify "
    "references returning right select semi show similar some struct summarize symmetric table tablesample then to "
    "trailing true try_cast tuple union unique unpack unpivot using variadic verbose when where window with "
)
NOT_NAMES: Final = frozenset(_WORDS.split())
"""No user property has one of these names: columns of snapshots, and words that SQL keeps to itself."""

SUFFIXES: Final = ("_text", "_lengths", "_tried")
"""What columns made of a property end with."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_PROPERTY_NAME = re.compile(r"[a-z][a-z0-9_]+")


@dataclass(frozen=True)
class Property:
    """A user property of a snapshot.

    SQL, schemas, previews, pages and docs are made of this declaration. Data files and stored snapshots from before a
    property was added lack it: it is null until an event brings its group again.

    Attributes:
        name: in Amplitude.
        group: of :data:`GROUPS`.
        path: where a payload has it; begins with the group's own path. Empty where ``sql`` says what it is.
        kind: ``texts``, an array of ids as texts; ``flag``, a boolean; and by ``sql`` also ``text`` or ``number``.
        means: a few words for people.
        unless_active: of a flag with a path: false while any entitlement is active.
        sql: an expression of DuckDB over the columns of docs/extend.md, computed of the events that have the group.

    Raises:
        ValueError: the declaration is none.
    """

    name: str
    group: str
    path: str = ""
    kind: Kind = "texts"
    means: str = ""
    unless_active: bool = False
    sql: str = ""

    def __post_init__(self) -> None:
        if self.group == ENRICHED:
            is_sound = not (self.path or self.sql or self.unless_active)
        elif self.sql:
            is_sound = self.group in GROUPS and not (self.path or self.unless_active)
        else:
            is_sound = (
                self.group in GROUPS
                and self.path.startswith(f"{GROUPS[self.group]}.")
                and all(map(_NAME.fullmatch, self.steps))
                and self.kind == ("texts" if GROUPS[self.group].endswith("[]") else "flag")
                and not (self.unless_active and self.kind != "flag")
            )
        if not _PROPERTY_NAME.fullmatch(self.name) or self.name in NOT_NAMES:
            raise ValueError(
                f"{self.name!r} is no name of a user property: two or more of a-z, 0-9 and _, and no word of SQL or "
                "column of ours"
            )
        if not (is_sound and self.kind in KINDS):
            raise ValueError(f"{self.name} is no property of {self.group}: {self.path or self.sql}, {self.kind}")

    @property
    def steps(self) -> list[str]:
        """The fields from the group's object to the value."""
        return self.path.removeprefix(f"{GROUPS[self.group]}.").split(".")

    @property
    def field(self) -> str:
        """The payload field that it comes from; empty where an enrichment gives it."""
        return GROUPS.get(self.group, "").removesuffix("[]")

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return self.path or self.sql or "an enrichment"

    @property
    def carried(self) -> str:
        """What the value is called before ``unless_active`` is applied; otherwise the name."""
        return self.name.removeprefix("namiml_") if self.unless_active else self.name

    def names_any(self, fields: frozenset[str]) -> frozenset[str]:
        """Those of some payload fields or properties that it is made of; whoever hides one of them hides it too.

        Args:
            fields: names. In SQL a name counts wherever it stands as a word.
        """
        words = frozenset(re.findall(r"\w+", self.sql)) if self.sql else frozenset()
        return fields & (words | {self.name, self.field})


def beside(name: str, known: Collection[str]) -> str | None:
    """The known name that a property of this name cannot be beside; None if there is none."""
    of_both = (name, *(name + suffix for suffix in SUFFIXES), *(name.removesuffix(suffix) for suffix in SUFFIXES))
    return next((other for other in of_both if other in known), None)


def as_sent(properties: Iterable[Property]) -> list[Property]:
    """Properties in the order in which an event has them, whatever order they are declared in."""
    groups = [*GROUPS, ENRICHED]
    return sorted(properties, key=lambda prop: (groups.index(prop.group), not prop.unless_active))


class EnrichmentContext(Protocol):
    """What a function of an enrichment is given beside the batch."""

    @property
    def now(self) -> datetime:
        """When the batch is computed, in UTC."""

    def query(self, sql: str, **lists: Any) -> pa.Table:
        """Asks the warehouse for another table.

        Args:
            sql: a query in the words of the warehouse. ``$name`` is replaced by the list of that name, in parentheses,
                as in ``WHERE user_id IN $users``.
            **lists: texts, numbers or booleans each, as a list or a column of Arrow or pandas; nulls are left out.

        Returns:
            The answer.
        """


@dataclass(frozen=True)
class Enrichment:
    """User properties that a function computes of a batch of events, such as from another table of the warehouse.

    Attributes:
        properties: the kind of each property, by its name in Amplitude.
        function: gets the batch and an :class:`EnrichmentContext`; gives one column for each of ``properties``, as an
            Arrow table, a data frame or a mapping, with the rows of the batch in the order of the batch.
        means: a few words of each property for people, or the same of all.
        timing: ``as_of``: the value is that at the time of the event. ``current``: it is that of now, and events older
            than what their user was sent go without it.
        on_failure: what happens to events of which the function raised, took too long, or gave what was not declared.
            ``without``: they are sent without the properties. ``wait``: they wait, and the next run tries again.
        batch: what the function gets: ``arrow``, a ``pyarrow.Table``; or ``pandas``, a data frame.
        with_payload: whether the batch has the column ``payload``, the event as JSON text.
        timeout_seconds: how long the function may take for one batch.

    Raises:
        ValueError: the declaration is none.
    """

    properties: Mapping[str, Kind]
    function: Callable[[Any, EnrichmentContext], Any]
    means: str | Mapping[str, str] = ""
    timing: Literal["current", "as_of"] = "current"
    on_failure: Literal["without", "wait"] = "without"
    batch: Literal["arrow", "pandas"] = "arrow"
    with_payload: bool = False
    timeout_seconds: float = 60.0
    declared: tuple[Property, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        is_sound = (
            bool(self.properties)
            and callable(self.function)
            and self.timing in ("current", "as_of")
            and self.on_failure in ("without", "wait")
            and self.batch in ("arrow", "pandas")
            and self.timeout_seconds > 0
        )
        if not is_sound:
            raise ValueError(f"{', '.join(self.properties) or 'it'} is no enrichment")
        means = self.means if isinstance(self.means, Mapping) else dict.fromkeys(self.properties, self.means)
        made = tuple(
            Property(name, ENRICHED, kind=kind, means=means.get(name, "")) for name, kind in self.properties.items()
        )
        object.__setattr__(self, "declared", made)

    @property
    def name(self) -> str:
        """The properties as people call them together."""
        return ", ".join(self.properties)
