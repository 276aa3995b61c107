"""Plans and applies a file: both do the same in one transaction, and a plan takes it back.

So a plan has met every rule that applying meets, and all of a file is applied, or nothing of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from nami_amp_pipeline.clock import micros
from nami_amp_pipeline.errors import Busy, Misconfigured
from nami_amp_pipeline.operations.as_code import consequences
from nami_amp_pipeline.operations.as_code.document import IntegrationEntry, KeyReference
from nami_amp_pipeline.operations.as_code.plan import FieldChange, Plan, PlannedChange
from nami_amp_pipeline.operations.as_code.reading import Given, Keys
from nami_amp_pipeline.operations.as_code.scratch import scratch_of
from nami_amp_pipeline.operations.as_code.yaml_lines import Mistake, Place
from nami_amp_pipeline.secrets import Cipher, Secret
from nami_amp_pipeline.state import Store, Transaction, live_first
from nami_amp_pipeline.state.integration_changes import (
    UNCHANGED,
    IntegrationChange,
    Unchanged,
    alter,
    changed_since,
    differences,
    moves_back,
)
from nami_amp_pipeline.state.integration_keys import sharing_a_key
from nami_amp_pipeline.state.integration_rows import find
from nami_amp_pipeline.state.integrations import (
    Integration,
    alone,
    hold_keys,
    insert,
    plan_of,
    read_all,
    refuse_managed,
    register_plan,
)
from nami_amp_pipeline.state.store import Lease

_MOST_REASONS: Final = 3


@dataclass(frozen=True)
class Expected:
    """What a plan found, for whoever applies it later.

    Attributes:
        changes: what was to change, as JSON.
        versions: see :class:`Plan`.
        fingerprints: see :class:`Plan`.
    """

    changes: Sequence[Mapping[str, Any]]
    versions: Mapping[str, int | None]
    fingerprints: Mapping[str, str]

    @staticmethod
    def of(plan: Plan) -> Expected:
        """What a plan expects."""
        return Expected(plan.to_json()["changes"], plan.versions, plan.fingerprints)


def plan(store: Store, cipher: Cipher, given: Given, *, prune: bool = False) -> Plan:
    """What applying a file would change; nothing is changed, and nobody has to wait for it.

    Args:
        store: where the integrations are.
        cipher: of their keys.
        given: the file.
        prune: whether integrations that are no longer in the file are switched off.

    Raises:
        Mistakes: the file cannot be applied; all reasons.
    """
    keys = given.keys()
    with scratch_of(store) as scratch, scratch.begin() as tx:
        return _Pass(scratch, tx, cipher, given, keys, prune).run()


def apply(store: Store, cipher: Cipher, given: Given, expected: Expected, *, prune: bool, by: str) -> Plan:
    """Applies a file, all of it or nothing, if the store is as it was when the plan was made.

    Args:
        store: where the integrations are.
        cipher: of their keys.
        given: the file.
        expected: what the plan found.
        prune: as for the plan.
        by: who applies it.

    Raises:
        Misconfigured: something has changed since the plan.
        Mistakes: the file cannot be applied; all reasons.
        Busy: a run works for an integration whose start moves back.
    """
    keys = given.keys()
    with _right_to_move_starts(store, given) as leases, store.begin(under=leases) as tx:
        work = _Pass(store, tx, cipher, given, keys, prune, by)
        work.refuse_moved(expected)
        done = work.run()
        if _without_words(done.to_json()["changes"]) != _without_words(expected.changes):
            raise _moved(["the store has changed since"])
        return done


@contextmanager
def _right_to_move_starts(store: Store, given: Given) -> Iterator[Collection[Lease]]:
    with store.reading() as tx:
        there = {integration.key: integration for integration in read_all(tx)}
    names = [
        f"{live_first.INTEGRATION}{there[key].id}"
        for app_id, name, entry in given.document.entries()
        if (key := f"{app_id}/{name}") in there
        and entry.moves_start
        and moves_back(IntegrationChange(start_from=entry.start), there[key])
    ]
    leases = live_first.acquire(store, names) if names else {}
    try:
        if len(leases) < len(names):
            raise Busy("a run is working for an integration whose start moves back: apply the file when it has ended")
        yield list(leases.values())
    finally:
        if leases:
            store.release(leases.values())


@dataclass
class _Pass:
    """One pass over a file, in a transaction."""

    store: Store
    tx: Transaction
    cipher: Cipher
    given: Given
    keys: Mapping[str, Keys]
    prune: bool
    by: str = ""
    changes: list[PlannedChange] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unchanged: int = 0
    fresh: set[str] = field(default_factory=set)
    """Integrations of which the key or the events are new."""

    def __post_init__(self) -> None:
        self.now = micros(self.store.clock)
        hold_keys(self.store, self.tx)
        alone(self.store, self.tx)
        self.there = {integration.key: integration for integration in read_all(self.tx)}
        self.entries = {f"{app_id}/{name}": entry for app_id, name, entry in self.given.document.entries()}
        managed = {key for key, integration in self.there.items() if integration.managed_by == self.given.name}
        self.gone = sorted(managed - self.entries.keys())
        self.versions = {
            key: self.there[key].version if key in self.there else None for key in sorted({*self.entries, *managed})
        }
        self.fingerprints = {
            f"{key} {kind}": self._fingerprint(secret)
            for key, keys in self.keys.items()
            for kind, secret in keys.by_name.items()
        }

    def run(self) -> Plan:
        """Does everything.

        Raises:
            Mistakes: something cannot be done; all of it.
        """
        for app_id, app in sorted(self.given.document.apps.items()):
            if app.plan is not None:
                self._set_plan(app_id, app.plan)
        for key, entry in self.entries.items():
            try:
                if key in self.there:
                    self._change(self.there[key], entry)
                else:
                    self._add(key, entry)
            except Misconfigured as error:
                self._mistake(key, str(error))
        for key in self.gone:
            try:
                self._switch_off(self.there[key])
            except Misconfigured as error:
                self._mistake(key, str(error))
        self._look_at_shared_keys()
        if self.mistakes:
            raise self.given.mistakes(self.mistakes)
        return Plan(
            self.given, self.prune, tuple(self.changes), self.unchanged, tuple(self.left), self.versions,
            self.fingerprints,
        )  # fmt: skip

    def refuse_moved(self, expected: Expected) -> None:
        """Checks that everything is as it was when the plan was made.

        Raises:
            Misconfigured: something is not; the message says what.
        """
        reasons = []
        for key in sorted({*expected.versions, *self.versions}):
            before, now = expected.versions.get(key), self.versions.get(key)
            if before == now:
                continue
            if now is None:
                reasons.append(f"{key} is gone")
            elif before is None:
                reasons.append(f"{key} was added by somebody else")
            else:
                reasons.append(changed_since(self.tx, self.there[key], before))
        reasons += [
            f"the {kind} of {key} is another one now"
            for key, kind in (name.split(" ") for name in self.fingerprints)
            if expected.fingerprints.get(f"{key} {kind}") != self.fingerprints[f"{key} {kind}"]
        ]
        if reasons:
            raise _moved(reasons)

    def _set_plan(self, app_id: str, wanted: str) -> None:
        before = plan_of(self.tx, app_id)
        if before != wanted:
            register_plan(self.store, self.tx, app_id, wanted, by=self.by)
        if (before or "paid") != wanted:
            change = FieldChange("plan", before or "paid", wanted)
            self.changes.append(PlannedChange(app_id, "set plan", None, (change,), tuple(consequences.of_plan(wanted))))

    def _add(self, key: str, entry: IntegrationEntry) -> None:
        keys = self.keys[key]
        if keys.api_key is None:
            self._mistake(key, "there is no stored key to keep: say where the API key is", "api_key")
            return
        if entry.secret_key is not None and keys.secret_key is None:
            self._mistake(key, "there is no stored key to keep: say where the secret key is", "secret_key")
            return
        for field_name, secret in keys.secret_fields.items():
            if secret is None:
                self._mistake(key, "there is no stored secret to keep: say where it is", "secret_fields", field_name)
                return
        app_id, _, name = key.partition("/")
        start = entry.start if entry.moves_start else self.now
        new = entry.new(app_id, name, keys.api_key, keys.secret_key, keys.secret_fields, start)
        insert(self.store, self.tx, self.cipher, new, by=self.by, file=self.given.name)
        self.fresh.add(key)
        shown = entry.to_json()
        fields = tuple(FieldChange(field, None, _shown(entry, field, shown[field])) for field in sorted(shown))
        self.changes.append(PlannedChange(key, "add", None, fields, tuple(consequences.of_addition(entry))))

    def _change(self, seen: Integration, entry: IntegrationEntry) -> None:
        refuse_managed(seen, self.given.name)
        if entry.destination != seen.destination:
            raise Misconfigured(
                f"destination: it is {seen.destination}, and stays so; add another integration for {entry.destination}"
            )
        wanted = self._wanted(seen, entry)
        if not differences(self.cipher, seen, wanted)[1]:
            self.unchanged += 1
            return
        integration = find(self.tx, seen.key, lock=True)
        if integration is None:
            raise Misconfigured("was removed just now: plan again")
        what = self._alter(integration, wanted, seen)
        if what.keys() & {"api_key", "events"}:
            self.fresh.add(seen.key)
        fields = tuple(
            FieldChange(name, before, _shown(entry, name, after)) for name, (before, after) in sorted(what.items())
        )
        said = tuple(consequences.of_change(what, self.given.name))
        self.changes.append(
            PlannedChange(seen.key, "change", integration.version, fields, said, integration.halted_reason)
        )

    def _switch_off(self, seen: Integration) -> None:
        if not self.prune:
            self.left.append(seen.key)
            return
        wanted = IntegrationChange(enabled=False, managed_by=None)
        integration = find(self.tx, seen.key, lock=True)
        if integration is None:  # just now, by somebody
            return
        what = self._alter(integration, wanted, seen)
        fields = tuple(FieldChange(name, before, after) for name, (before, after) in sorted(what.items()))
        said = tuple(consequences.of_change(what, self.given.name))
        self.changes.append(PlannedChange(seen.key, "switch off", integration.version, fields, said))

    def _alter(self, integration: Integration, wanted: IntegrationChange, seen: Integration) -> dict[str, Any]:
        """Changes an integration, unless somebody did so since this pass began."""
        return alter(
            self.store, self.tx, self.cipher, integration, wanted, by=self.by, if_version=seen.version,
            file=self.given.name,
        )  # fmt: skip

    def _wanted(self, integration: Integration, entry: IntegrationEntry) -> IntegrationChange:
        keys = self.keys[integration.key]
        secret_key: Secret | Unchanged | None = None
        if entry.secret_key is not None:
            secret_key = self._new_key(keys.secret_key, integration.secret_key)
            if keys.secret_key is None and integration.secret_key is None:
                raise Misconfigured("secret_key: there is no stored key to keep: say where the secret key is")
        same_events = set(entry.events) == set(integration.patterns)
        return IntegrationChange(
            endpoint=entry.endpoint,
            api_key=self._new_key(keys.api_key, integration.api_key),
            secret_key=secret_key,
            user_id_kind=entry.user_id,
            anonymous=entry.anonymous,
            events=UNCHANGED if same_events else entry.events,
            rename=UNCHANGED if entry.rename == dict(integration.rename) else entry.rename,
            start_from=entry.start if entry.moves_start else UNCHANGED,
            enabled=entry.enabled,
            sandbox=entry.sandbox,
            exclude=entry.exclude,
            hashed=entry.hashed,
            revenue=entry.revenue,
            store_fees=entry.store_fees,
            fields=dict.fromkeys(integration.fields) | entry.fields,
            secret_fields=self._secret_fields(integration, keys),
            managed_by=self.given.name,
            allow_custom_endpoint=entry.allow_custom_endpoint,
            allow_shared_key=True,
        )

    def _secret_fields(self, integration: Integration, keys: Keys) -> dict[str, Secret | None]:
        """Those that change; None of those that the file does not have any more."""
        found: dict[str, Secret | None] = dict.fromkeys(integration.secret_fields.keys() - keys.secret_fields.keys())
        for name, given in keys.secret_fields.items():
            stored = integration.secret_fields.get(name)
            if given is None and stored is None:
                raise Misconfigured(f"secret_fields.{name}: there is no stored secret to keep: say where it is")
            new = self._new_key(given, stored)
            if isinstance(new, Secret):
                found[name] = new
        return found

    def _new_key(self, given: Secret | None, stored: str | None) -> Secret | Unchanged:
        """A key that is not the stored one; what is not given, or the same, does not change."""
        if given is None:
            return UNCHANGED
        if stored is None:
            return given
        try:
            is_same = self._fingerprint(self.cipher.decrypt(stored)) == self._fingerprint(given)
        except Misconfigured:  # its encryption key is lost, and this is how the key is set again
            return given
        return UNCHANGED if is_same else given

    def _fingerprint(self, secret: Secret) -> str:
        return self.cipher.fingerprint(secret.reveal(), "a key")

    def _look_at_shared_keys(self) -> None:
        """Finds one key in two integrations when all changes are made: keys and events may change places."""
        if not self.fresh:
            return
        for pair in sharing_a_key(read_all(self.tx), self.cipher):
            keys = [integration.key for integration in pair]
            fresh = sorted(self.fresh.intersection(keys), reverse=True)[:1]
            for key in fresh:
                (other,) = (name for name in keys if name != key)
                if not any(name in self.entries and self.entries[name].allow_shared_key for name in keys):
                    self._mistake(
                        key,
                        f"{consequences.shared(other)}. Select other events, or write 'allow_shared_key: true'",
                        "api_key",
                    )
                self._add_consequence(key, f"api_key: {consequences.shared(other)}")

    def _add_consequence(self, key: str, clause: str) -> None:
        for number, change in enumerate(self.changes):
            if change.subject == key and change.action != "set plan":
                said = (*change.consequences, clause)
                self.changes[number] = PlannedChange(
                    change.subject, change.action, change.version, change.fields, said, change.halted
                )

    def _mistake(self, key: str, message: str, *more: str) -> None:
        app_id, _, name = key.partition("/")
        place: Place = ("apps", app_id, "integrations", name, *more)
        self.mistakes.append(Mistake(place, None, message))


def _shown(entry: IntegrationEntry, name: str, after: Any) -> Any:
    """A value for people: of a key where it is found, or that there is none."""
    if name == "secret_fields":
        return {field: str(entry.secret_fields.get(field, said)) for field, said in after.items()}
    reference = getattr(entry, name) if name in ("api_key", "secret_key") else None
    return str(reference) if isinstance(reference, KeyReference) else after


def _without_words(changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in change.items() if name != "consequences"} for change in changes]


def _moved(reasons: Sequence[str]) -> Misconfigured:
    more = f"; and {len(reasons) - _MOST_REASONS} more" if len(reasons) > _MOST_REASONS else ""
    said = "; ".join(reasons[:_MOST_REASONS])
    return Misconfigured(f"nothing was changed, because things have moved since the plan: {said}{more}. Plan again")
