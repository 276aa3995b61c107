"""What people ask and do about integrations as code; the command line and a page use it alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nami_amp_pipeline.contract import did_you_mean
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.apps import list_apps
from nami_amp_pipeline.operations.as_code import applying, exporting, saved_plans
from nami_amp_pipeline.operations.as_code.applying import Expected
from nami_amp_pipeline.operations.as_code.document import json_schema
from nami_amp_pipeline.operations.as_code.plan import FieldChange, Plan, PlannedChange
from nami_amp_pipeline.operations.as_code.reading import Given, read_file, text_of
from nami_amp_pipeline.secrets import Cipher
from nami_amp_pipeline.state import Store, integration_changes
from nami_amp_pipeline.state.integration_keys import sharing_a_key
from nami_amp_pipeline.state.integration_rows import all_integrations

__all__ = ["AsCode", "FieldChange", "Plan", "PlannedChange", "as_yaml", "json_schema"]

as_yaml = exporting.as_yaml


class AsCode:
    """Exports, plans and applies the file of the integrations.

    Args:
        store: where the integrations are.
        cipher: of their keys.
        by: in whose name they are changed.
    """

    def __init__(self, store: Store, cipher: Cipher, *, by: str = "") -> None:
        self._store = store
        self._cipher = cipher
        self._by = by

    def export(self, apps: Sequence[str] = ()) -> dict[str, Any]:
        """The integrations that there are, as the file that makes them; of all apps, or of some.

        Raises:
            Misconfigured: an app is unknown.
        """
        integrations = all_integrations(self._store)
        known = list_apps(self._store)
        ids = [app.app_id for app in known]
        for app_id in apps:
            if app_id not in ids:
                raise Misconfigured(f"there is no app {app_id}{did_you_mean(app_id, ids)}")
        sharing = {integration.key for pair in sharing_a_key(integrations, self._cipher) for integration in pair}
        return exporting.exported(
            [integration for integration in integrations if not apps or integration.app_id in apps],
            [app for app in known if not apps or app.app_id in apps],
            sharing,
        )

    def plan(self, file: Path, *, prune: bool = False) -> Plan:
        """What applying a file would change.

        Args:
            file: the YAML file.
            prune: whether integrations that are no longer in it are switched off.

        Raises:
            Misconfigured: the file cannot be read.
            Mistakes: it cannot be applied; all reasons, with their lines.
        """
        return applying.plan(self._store, self._cipher, read_file(file), prune=prune)

    def save(self, plan: Plan, file: Path) -> None:
        """Writes a plan to a file, without any key, for :meth:`apply_saved`.

        Raises:
            Misconfigured: the file cannot be written.
        """
        saved_plans.save(plan, file, self._cipher)

    def apply(self, plan: Plan) -> Plan:
        """Applies a plan, all of it or nothing; returns what was done.

        Raises:
            Misconfigured: something has changed since the plan.
            Busy: a run works for an integration whose start moves back.
        """
        return self._apply(plan.given, Expected.of(plan), prune=plan.prune)

    def is_saved_plan(self, file: Path) -> bool:
        """Whether a file is a saved plan, and not a file of integrations.

        Raises:
            Misconfigured: it cannot be read.
        """
        return saved_plans.is_saved(text_of(file))

    def apply_saved(self, file: Path) -> Plan:
        """Applies a saved plan, as :meth:`apply` does.

        Raises:
            Misconfigured: it cannot be read, is not of this installation, or something has changed since.
            Busy: a run works for an integration whose start moves back.
        """
        given, prune, expected = saved_plans.load(text_of(file), file, self._cipher)
        return self._apply(given, expected, prune=prune)

    def release(self, key: str) -> str | None:
        """Ends the management of an integration by a file; returns the name of the file, None if there was none.

        Raises:
            Misconfigured: there is no such integration.
        """
        return integration_changes.release(self._store, key, by=self._by)

    def _apply(self, given: Given, expected: Expected, *, prune: bool) -> Plan:
        return applying.apply(self._store, self._cipher, given, expected, prune=prune, by=self._by)
