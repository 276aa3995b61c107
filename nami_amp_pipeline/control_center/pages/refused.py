"""Refused: dead letters by cause and one by one; sends them again, and marks them as seen."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response

from nami_amp_pipeline.control_center import words
from nami_amp_pipeline.control_center.paging import ROWS, Part
from nami_amp_pipeline.control_center.payloads import download, payload
from nami_amp_pipeline.control_center.visit import NotFound, Visit, action, page
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations import reasons
from nami_amp_pipeline.operations.causes import Cause
from nami_amp_pipeline.operations.dead_letters import DeadLetter, Filter
from nami_amp_pipeline.operations.times import parse_time

STATES: Final = {"": "Not dismissed", "yes": "Dismissed", "all": "All"}
"""What ``dismissed`` in an address may be, and its words."""

RESULTS_SHOWN: Final = 7 * 86_400_000_000
"""In µs: so long the page says what became of events that were sent again; after that, History does."""

MOST_RESULTS: Final = 5

_DISMISSED: Final = {"": False, "yes": True, "all": None}
_FIELDS: Final = ("integration", "reason", "since", "until", "dismissed", "number")


class Asked:
    """What an address or a form asks for.

    Args:
        visit: whose query or form has it.

    Attributes:
        params: as the address has it, without empty fields.
        wrong: what is wrong with it, by field.
        filter: the same for operations; None where something is wrong, or the app has no integration.
    """

    def __init__(self, visit: Visit) -> None:
        read = visit.text if visit.is_post else lambda name: visit.query.get(name, "")
        given = {name: read(name).strip() for name in _FIELDS}
        self.params: dict[str, Any] = {name: value for name, value in given.items() if value}
        self.wrong: dict[str, str] = {}
        self.filter: Filter | None = None
        keys = [integration.key for integration in visit.of_app]
        if given["integration"]:
            keys = [key for key in keys if key == f"{visit.app_id}/{given['integration']}"]
            if not keys:
                raise NotFound("There is no such integration")
        if given["dismissed"] not in STATES:
            raise NotFound("There is no such list of refused events")
        moments = {name: self._moment(name, given[name], visit.now) for name in ("since", "until")}
        known = set(reasons.codes("dead_letter"))
        if given["reason"] and given["reason"] not in known:
            self.wrong["reason"] = "There is no such cause"
        if keys and not self.wrong:
            self.filter = Filter(
                ids=[given["number"]] if given["number"] else (),
                integrations=keys if given["integration"] else (),
                apps=[visit.app_id],
                reasons=[given["reason"]] if given["reason"] else (),
                since=moments["since"],
                until=moments["until"],
                dismissed=_DISMISSED[given["dismissed"]] if not given["number"] else None,
            )

    def _moment(self, name: str, text: str, now: int) -> int | None:
        if not text:
            return None
        try:
            return parse_time(text, name.capitalize(), now / 1e6)
        except Misconfigured as error:
            self.wrong[name] = str(error)
            return None


def show(visit: Visit) -> Response:
    """All refused events of an app: by cause, then one by one."""
    _ = visit.app
    asked = Asked(visit)
    causes: list[Cause] = []
    before = visit.query.get("after", "")
    part: Part[DeadLetter] = Part((), None)
    if asked.filter is not None:
        causes = visit.operations.causes(asked.filter)
        if before and not (before.isascii() and before.isdecimal() and len(before) < 19):
            raise NotFound("There is no such page of the list")
        if causes:
            found, _ = visit.operations.dead_letters(asked.filter, ROWS + 1, int(before) if before else None)
            part = Part(found[:ROWS], str(found[ROWS - 1].id) if len(found) > ROWS else None)
    return visit.render(
        "refused.html",
        status=400 if asked.wrong else 200,
        asked=asked,
        causes=causes,
        part=part,
        states=STATES,
        codes=reasons.codes("dead_letter"),
        resent=[] if before else visit.operations.resent(visit.app_id, visit.now - RESULTS_SHOWN)[:MOST_RESULTS],
        means=words.means,
    )


def _letter(visit: Visit) -> DeadLetter:
    number = visit.number
    try:
        found = visit.operations.dead_letter(str(number))
    except Misconfigured:
        found = []
    keys = {integration.key for integration in visit.of_app}
    for letter in found:
        if letter.id == number and letter.integration.partition("~")[0] in keys:
            return letter
    raise NotFound("There is no such refused event. It may have been sent again, or be past its retention")


def show_letter(visit: Visit) -> Response:
    """One refused event, with the fields that Amplitude named marked."""
    letter = _letter(visit)
    named = [field.name for field in letter.fields]
    return visit.render(
        "letter.html",
        letter=letter,
        body=payload(letter.body, named),
        source=payload(letter.payload),
        answer=payload(letter.answer),
        means=words.means,
    )


def show_file(visit: Visit) -> Response:
    """A payload of a refused event, as a file."""
    letter = _letter(visit)
    what = visit.request.path_params["what"]
    texts = {"body": letter.body, "payload": letter.payload, "answer": letter.answer}
    text = texts.get(what)
    if text is None:
        raise NotFound("There is no such file")
    return download(text, f"refused-{letter.id}-{what}.json")


def send_again(visit: Visit) -> Response:
    """Asks how many are sent again, and sends them again."""
    asked, which, causes = _chosen(visit)
    sendable, old = sum(cause.sendable for cause in causes), sum(cause.old for cause in causes)
    if visit.is_post:
        done = visit.operations.retry(which)
        count = done.retried
        if visit.text("old") and old:
            count += visit.operations.retry(which, force=True, after=done).retried
        return visit.redirect("refused", app=visit.app_id, done="sent-again", n=count, **_back(asked))
    nothing = sum(cause.events for cause in causes) - sendable - old
    return visit.render("send_again.html", asked=asked, causes=causes, sendable=sendable, old=old, nothing=nothing)


def dismiss(visit: Visit) -> Response:
    """Asks how many are marked as seen, and marks them; or takes the marks back."""
    asked, which, causes = _chosen(visit)
    undo = asked.params.get("dismissed") == "yes"
    if visit.is_post:
        count = visit.operations.dismiss(which, undo=undo)
        return visit.redirect(
            "refused", app=visit.app_id, done="undismissed" if undo else "dismissed", n=count, **_back(asked)
        )
    return visit.render(
        "dismiss.html", asked=asked, causes=causes, events=sum(cause.events for cause in causes), undo=undo
    )


def _chosen(visit: Visit) -> tuple[Asked, Filter, list[Cause]]:
    asked = Asked(visit)
    if asked.filter is None:
        raise NotFound("There is no such list of refused events")
    try:
        return asked, asked.filter, visit.operations.causes(asked.filter)
    except Misconfigured:
        raise NotFound("There is no such refused event any more") from None


def _back(asked: Asked) -> dict[str, Any]:
    return {name: value for name, value in asked.params.items() if name != "number"}


navigation: Final = ("refused", "Refused")
_OF: Final = "/apps/{app}/refused"
routes: Final = [
    page(_OF, show, name="refused"),
    action(f"{_OF}/again", send_again, name="send-again"),
    action(f"{_OF}/dismiss", dismiss, name="dismiss"),
    page(f"{_OF}/{{number:int}}", show_letter, name="letter"),
    page(f"{_OF}/{{number:int}}/{{what}}.json", show_file, name="letter-file"),
]
