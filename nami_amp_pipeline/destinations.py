"""The destinations that there are, by the name in the store: ours, and those of other packages. Light to import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from datetime import timedelta
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final

from nami_amp_pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from nami_amp_pipeline.delivery.destination import Destination, Field

ENTRY_POINTS: Final = "nami_amp_pipeline.destinations"
"""The group of entry points by which packages add others: the name is the destination's, the object is one."""

DEFAULT: Final = "amplitude"

_NEEDED: Final = ("name", "title", "fields", "limits", "judge", "frame")

SHARED_FIELDS: Final = ("endpoint", "api_key", "secret_key")
"""The fields that are settings of each integration; a destination's other fields are its own."""

OURS: Final[Mapping[str, tuple[str, str]]] = {
    "amplitude": ("nami_amp_pipeline.amplitude.target", "AMPLITUDE"),
    "http": ("nami_amp_pipeline.http_endpoint.target", "HTTP"),
}
"""Module and name of each that ships. Named rather than imported: posting brings what most commands do not need."""


class Destinations(MutableMapping[str, "Destination"]):
    """Destinations by name, each loaded when it is asked for; one that is put in here needs no entry point."""

    def __init__(self) -> None:
        self._loaded: dict[str, Destination] = {}

    def __getitem__(self, name: str) -> Destination:
        if name not in self._loaded:
            if name in OURS:
                module, attribute = OURS[name]
                self._loaded[name] = getattr(import_module(module), attribute)
            elif (point := _added(name)) is not None:
                self._loaded[name] = _usable(point)
            else:
                raise KeyError(name)
        return self._loaded[name]

    def __setitem__(self, name: str, destination: Destination) -> None:
        self._loaded[name] = destination

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        others = {*self._loaded, *(point.name for point in entry_points(group=ENTRY_POINTS))} - OURS.keys()
        return iter((*OURS, *sorted(others)))

    def __len__(self) -> int:
        return len(list(iter(self)))


DESTINATIONS: Final = Destinations()


def destination_of(name: str) -> Destination:
    """A destination by its name.

    Raises:
        Misconfigured: there is none of that name, or the package that adds it cannot be used.
    """
    found = DESTINATIONS.get(name)
    if found is None:
        raise Misconfigured(
            f"unknown destination {name!r}: there {'is' if len(DESTINATIONS) == 1 else 'are'} "
            f"{', '.join(DESTINATIONS)}; another one needs the package that adds it, or NAMI_AMP_EXTENSIONS"
        )
    return found


def own_fields(destination: Destination) -> dict[str, Field]:
    """The fields of a destination that are its own, by name."""
    return {field.name: field for field in destination.fields if field.name not in SHARED_FIELDS}


def title_of(name: str) -> str:
    """What people call a destination; its name, if it cannot be used any more."""
    try:
        return destination_of(name).title
    except Misconfigured:
        return name


def repeats_micros(name: str, endpoint: str) -> int:
    """How long a destination recognises an event that comes again, in µs; not at all, if it cannot be used any more."""
    try:
        window = destination_of(name).limits(endpoint).recognises_repeats
    except Misconfigured:
        return 0
    return window // timedelta(microseconds=1)


@cache
def _added(name: str) -> EntryPoint | None:
    """The entry point of a package that adds a destination; asked for once, as it looks at every package."""
    found = list(entry_points(group=ENTRY_POINTS, name=name))
    if len(found) > 1:
        packages = ", ".join(sorted({point.dist.name if point.dist else point.value for point in found}))
        raise Misconfigured(f"several packages add the destination {name}: {packages}; uninstall all but one")
    return found[0] if found else None


def is_destination(found: Any) -> bool:
    """Whether something is meant to be a destination, or a class of one."""
    return hasattr(found, "judge") and hasattr(found, "name")


def usable(found: Any, where: str) -> Destination:
    """A destination of somebody else, given as itself or its class.

    Args:
        found: the destination.
        where: it comes from, for messages.

    Raises:
        Misconfigured: it lacks something.
    """
    destination: Destination = found() if isinstance(found, type) else found
    missing = [what for what in _NEEDED if not hasattr(destination, what)]
    if missing:
        raise Misconfigured(f"{where} is no destination: it has no {', '.join(missing)}")
    if own_fields(destination) and not hasattr(destination, "with_fields"):
        raise Misconfigured(f"{where} has fields of its own, but no with_fields that takes their values")
    return destination


def _usable(point: EntryPoint) -> Destination:
    try:
        found: Any = point.load()
    except Exception as error:  # noqa: BLE001 - whatever another package runs into
        why = f"{type(error).__name__}: {error}"
        raise Misconfigured(f"the destination {point.name} cannot be loaded from {point.value}: {why}") from None
    destination = usable(found, point.value)
    if destination.name != point.name:
        raise Misconfigured(f"{point.value} calls itself {destination.name}, but its entry point {point.name}")
    return destination
