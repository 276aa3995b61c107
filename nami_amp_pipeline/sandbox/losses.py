"""What happens to events after their 200: lost, a property cut, stored twice; as they come in, or later."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .audit import Audit
from .batches import Batch, Damage
from .fault_kinds import LOSSES, FaultError
from .faults import Fault, Faults, RequestFacts
from .settings import key_digest
from .store import ProjectStore
from .validation import Event


def lose(faults: Faults, facts: RequestFacts, store: ProjectStore, batch: Batch, audit: Audit) -> dict[int, Damage]:
    """Damages the events of a request that was just taken, as the rules say.

    Args:
        faults: the rules.
        facts: the request.
        store: the project that took it.
        batch: what was taken of it.
        audit: where to count.

    Returns:
        The damage that was done, by the number of the event.
    """
    done: dict[int, Damage] = {}
    for rule, index in faults.losses(facts):
        place = _place(batch, index)
        if place is not None:
            new = damage_of(rule)
            damage(store, batch, place, facts.events[index], new, audit)
            number = batch.first + place
            done[number] = done.get(number, Damage()).and_also(new)
    return done


def lose_held(rule: Fault, faults: Faults, store: ProjectStore, audit: Audit) -> dict[int, Damage]:
    """Damages what a project holds already, once.

    Args:
        rule: of a kind that loses, cuts or doubles.
        faults: draws what the rule leaves to chance.
        store: the project.
        audit: where to count.

    Returns:
        The damage that was done, by the number of the event.
    """
    if rule.api_key is not None and key_digest(rule.api_key) != store.digest:
        return {}
    anyone = replace(rule, api_key=None)
    done: dict[int, Damage] = {}
    for batch in store.kept():
        events = batch.events()
        for place in anyone.matches(RequestFacts(batch.path, None, events)) or ():
            if not batch.damage.get(place, Damage()).lost and faults.draw(rule):
                done[batch.first + place] = damage_of(rule)
                damage(store, batch, place, events[place], damage_of(rule), audit)
    store.forget_replay()
    return done


def check_loses(rule: Fault) -> None:
    """Checks that a rule can happen to stored events.

    Raises:
        FaultError: it is of another kind.
    """
    if rule.kind not in LOSSES:
        raise FaultError(f"stored events can only be lost, cut or doubled: use one of {', '.join(sorted(LOSSES))}")


def damage_of(rule: Fault) -> Damage:
    """What a rule does to an event."""
    if rule.kind == "lost_after_200":
        return Damage(lost=True)
    if rule.kind == "stored_twice":
        return Damage(copies=2)
    return Damage(cuts={rule.property_name or "": rule.characters})


def damage(store: ProjectStore, batch: Batch, place: int, event: Event, new: Damage, audit: Audit) -> None:
    """Damages one event, and counts it."""
    before = batch.damage.get(place, Damage())
    store.damage(batch, place, event, new)
    audit.lost += new.lost and not before.lost
    audit.stored_twice += new.copies - 1
    audit.properties_cut += len(new.cuts)


def restored(store: ProjectStore, numbers: Mapping[str, Mapping[str, Any]], audit: Audit) -> None:
    """Damages events as the journal says, by their numbers."""
    for number, content in ((int(text), content) for text, content in numbers.items()):
        batch, event = store.batch_of(number), store.event(number)
        if event is not None:
            damage(store, batch, number - batch.first, event, Damage(**content), audit)


def _place(batch: Batch, index: int) -> int | None:
    """Place of an event of a request among those that were taken; None for a repeat."""
    picks: Sequence[int] | None = batch.picks
    if picks is None:
        return index
    place = bisect_left(picks, index)
    return place if place < len(picks) and picks[place] == index else None
