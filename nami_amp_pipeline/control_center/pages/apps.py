"""The first page: chooses an app."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from nami_amp_pipeline.contract import APP_ID
from nami_amp_pipeline.control_center.paging import cut
from nami_amp_pipeline.control_center.visit import Visit, page


def show(visit: Visit) -> Response:
    """All apps by id; with ``q``, those whose id contains it. An id that is written whole leads to its page."""
    asked = visit.query.get("q", "").strip()
    apps = visit.operations.apps()
    if asked and APP_ID.fullmatch(asked) and (visit.query.get("open") or any(app.app_id == asked for app in apps)):
        return visit.redirect("integrations", app=asked)
    found = [app for app in apps if asked.lower() in app.app_id.lower() and app.app_id > visit.query.get("after", "")]
    part = cut(found, lambda app: app.app_id)
    can_open = bool(asked and APP_ID.fullmatch(asked))
    waiting = visit.operations.apps_of_warehouse() if visit.query.get("look") else None
    known = {app.app_id for app in apps}
    return visit.render(
        "apps.html",
        part=part,
        asked=asked,
        can_open=can_open,
        waiting=None if waiting is None else [app_id for app_id in waiting if app_id not in known],
    )


routes: Final = [page("/", show, name="apps")]
