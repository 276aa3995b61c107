"""History: what happened in an app and who did it, the newest first; and who signed in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

from starlette.responses import Response

from nami_amp_pipeline.contract import INTEGRATION_NAME
from nami_amp_pipeline.control_center.changes import in_words
from nami_amp_pipeline.control_center.paging import ROWS, Part
from nami_amp_pipeline.control_center.visit import NotFound, Visit, page
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.app_history import Kind

WORDS: Final[Mapping[Kind, str]] = {
    "changes": "Changes of integrations",
    "halts": "Stopped, and on again",
    "backfills": "Backfills and identifies",
    "resends": "Sent again",
    "comparisons": "Comparisons asked for",
    "app": "Plan and quota",
    "people": "People and sign-ins, of all apps",
}
"""What the list can be narrowed to."""


def show(visit: Visit) -> Response:
    """All that happened, of all integrations of the app or of one, also of those that were removed."""
    _ = visit.app
    name, kind = visit.query.get("integration", ""), visit.query.get("kind", "")
    name = name if INTEGRATION_NAME.fullmatch(name) else ""
    if kind and kind not in WORDS:
        raise NotFound("There is no such part of the history")
    try:
        rows, after = visit.operations.app_history(
            visit.app_id,
            name=name or None,
            kind=cast(Kind, kind) if kind else None,
            after=visit.query.get("after", ""),
            limit=ROWS,
        )
    except Misconfigured:
        raise NotFound("There is no such page of the history") from None
    said = {row.place: in_words(row.record) for row in rows if row.record is not None}
    return visit.render(
        "history.html",
        part=Part(rows, after),
        said=said,
        name=name,
        kind=kind,
        kinds=WORDS,
        names=[row.name for row in visit.of_app],
    )


navigation: Final = ("history", "History")
routes: Final = [page("/apps/{app}/history", show, name="history")]
