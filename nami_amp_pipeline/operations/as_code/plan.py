"""What applying a file would change, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nami_amp_pipeline.operations.as_code.reading import Given

Action = Literal["add", "change", "switch off", "set plan"]


@dataclass(frozen=True)
class FieldChange:
    """A field before and after; of keys only where the new one is found, or that it goes."""

    name: str
    before: Any
    after: Any

    def to_json(self) -> dict[str, Any]:
        """An object of ``plan --json``."""
        return {"field": self.name, "before": self.before, "after": self.after}


@dataclass(frozen=True)
class PlannedChange:
    """What happens to one integration, or to an app.

    Attributes:
        subject: ``<app_id>/<name>``, or the id of an app.
        action: what happens.
        version: of the integration, before; None of a new one, and of an app.
        fields: what changes, by name.
        consequences: what follows from that, for people.
        halted: why the integration stays halted although it changes; None if it is not.
    """

    subject: str
    action: Action
    version: int | None
    fields: tuple[FieldChange, ...]
    consequences: tuple[str, ...] = ()
    halted: str | None = None

    def to_json(self) -> dict[str, Any]:
        """An object of ``plan --json``."""
        return {
            ("app" if self.action == "set plan" else "integration"): self.subject,
            "action": self.action.replace(" ", "_"),
            "version": self.version,
            "fields": [change.to_json() for change in self.fields],
            "consequences": list(self.consequences),
        }


@dataclass(frozen=True)
class Plan:
    """What applying a file changes.

    Attributes:
        given: the file.
        prune: whether integrations that are no longer in the file are switched off.
        changes: apps first, then integrations, by id and key.
        unchanged: how many integrations of the file are as it says.
        left: integrations that the file manages although it no longer has them, and that stay as they are.
        versions: of all integrations that the file has or manages; None of those that there are not yet.
        fingerprints: of the keys that the file names, by integration and kind; keyed, so they say nothing of a key.
    """

    given: Given
    prune: bool
    changes: tuple[PlannedChange, ...]
    unchanged: int
    left: tuple[str, ...]
    versions: Mapping[str, int | None] = field(repr=False)
    fingerprints: Mapping[str, str] = field(repr=False)

    def count(self, action: Action) -> int:
        """How many changes are of a kind."""
        return sum(change.action == action for change in self.changes)

    def to_json(self) -> dict[str, Any]:
        """The object of ``plan --json``."""
        return {
            "file": self.given.name,
            "prune": self.prune,
            "changes": [change.to_json() for change in self.changes],
            "unchanged": self.unchanged,
            "left": list(self.left),
        }
