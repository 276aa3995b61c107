"""Ready-made scenes: what goes wrong with Amplitude or on the way to it, each as fault rules."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .fault_kinds import FaultError
from .faults import Fault, Faults
from .settings import EXPORT_PATH

_Rules = list[Mapping[str, Any]]
_SEED: Final = 12
"""Of what is left to chance: a scene hits the same events and users each time."""


@dataclass(frozen=True)
class Scene:
    """A scene.

    Attributes:
        name: for ``--scene`` and the control API.
        title: what its button says.
        means: one sentence for people.
        rules: makes the fault rules of the value that it was started with.
        value: what its value is; empty for a scene without.
        default: the value if none is given; may be empty for a choice that the scene makes.
    """

    name: str
    title: str
    means: str
    rules: Callable[[str], _Rules]
    value: str = ""
    default: str = ""


def _number(text: str, least: int = 1) -> int:
    if not (text.isascii() and text.isdecimal()) or not least <= int(text[:12]) <= 1_000_000:
        raise FaultError(f"{text!r} is not a number from {least} to 1000000")
    return int(text)


def _of_events(kind: str, **more: Any) -> Callable[[str], _Rules]:
    """One event in so many."""
    return lambda text: [{"kind": kind, "share": 1 / _number(text), "seed": _SEED, **more}]


def _of_user(kind: str) -> Callable[[str], _Rules]:
    """A user, or one in twenty."""

    def rules(text: str) -> _Rules:
        return [{"kind": kind, **({"user_id": text} if text else {"share": 0.05, "share_by": "user", "seed": _SEED})}]

    return rules


def _always(*rules: Mapping[str, Any]) -> Callable[[str], _Rules]:
    return lambda _: list(rules)


def _project_throttled(text: str) -> _Rules:
    return [{"kind": "project_429", **({"retry_after": _number(text)} if text else {})}]


def _longer_exports(kind: str) -> Callable[[str], _Rules]:
    return lambda text: [{"kind": kind, "path": EXPORT_PATH, "min_hours": _number(text) + 1}]


_ONE_IN: Final = "one event in so many"
_PROPERTY: Final = "the property"
_SKUS: Final = "namiml_active_skus"

SCENES: Final[Mapping[str, Scene]] = {
    scene.name: scene
    for scene in (
        Scene(
            "wrong-key", "Wrong key", "Every request is answered that the API key is wrong.",
            _always({"kind": "invalid_key"}),
        ),
        Scene(
            "throttled-user", "Throttled user", "A user is throttled: 429 for each request with an event of theirs.",
            _of_user("throttle_user"), "the user id; one user in twenty if none is given",
        ),
        Scene(
            "daily-quota", "User over the daily quota", "A user is over the daily quota: 429 until the scene stops.",
            _of_user("quota_user"), "the user id; one user in twenty if none is given",
        ),
        Scene(
            "project-throttled", "Throttled project", "The whole project is throttled: 429 for every request.",
            _project_throttled, "seconds for a Retry-After header; no header if none are given",
        ),
        Scene("outage", "Outage", "Every request is answered 503, and nothing is stored.", _always({"kind": "503"})),
        Scene(
            "outage-after-storing", "Outage after storing",
            "Every request is answered 500 although its events were stored.", _always({"kind": "stored_then_500"}),
        ),
        Scene(
            "gateway-pages", "Pages of a gateway", "Half of the requests are answered 502 with a page of HTML.",
            _always({"kind": "html_502", "probability": 0.5, "seed": _SEED}),
        ),
        Scene(
            "lost-connections", "Lost connections",
            "Half of the connections are reset without an answer, before or after the events are stored.",
            _always(
                {"kind": "reset_before_response", "probability": 0.25, "seed": _SEED},
                {"kind": "reset_before_response", "stored": True, "probability": 0.33, "seed": _SEED},
            ),
        ),
        Scene(
            "half-answers", "Half answers", "Half of the answers break off in their middle; the events are stored.",
            _always({"kind": "truncated_body", "probability": 0.5, "seed": _SEED}),
        ),
        Scene(
            "no-answers", "No answers", "The events are stored, but no answer comes until the connection is closed.",
            lambda text: [{"kind": "stall", "seconds": _number(text)}], "seconds until then", "60",
        ),
        Scene(
            "slow-answers", "Slow answers", "Every answer takes long.",
            lambda text: [{"kind": "slow", "seconds": _number(text)}], "seconds", "5",
        ),
        Scene(
            "interim-answers", "Interim answers", "Two interim answers (102 and 103) come before each final one.",
            _always({"kind": "interim_answers"}),
        ),
        Scene(
            "one-in-fifty-rejected", "One in fifty rejected",
            "One event in fifty is rejected: 400 for its request, and the answer names it.",
            lambda _: _of_events("poison")("50"),
        ),
        Scene(
            "rejected-without-names", "Rejected without names",
            "Some events are rejected, and no answer says which.",
            _of_events("poison", indexes="none"), _ONE_IN, "200",
        ),
        Scene(
            "silenced-devices", "Silenced devices", "One device in twenty is silenced: 400 for its events.",
            _always({"kind": "silence_device", "share": 0.05, "share_by": "user", "seed": _SEED}),
        ),
        Scene("forbidden", "Forbidden", "Amplitude's firewall answers every request 403.", _always({"kind": "403"})),
        Scene(
            "too-large", "Too large", "Requests with many events are answered 413.",
            lambda text: [{"kind": "413", "min_events": _number(text) + 1}], "the most events that pass", "100",
        ),
        Scene("redirect", "Redirect", "Every request is answered with a redirect elsewhere.",
              _always({"kind": "redirect"})),
        Scene(
            "lost-after-200", "Lost after 200", "Some events are answered 200 and not stored.",
            _of_events("lost_after_200"), _ONE_IN, "50",
        ),
        Scene(
            "nothing-kept", "Nothing kept", "Every request is answered 200, and nothing is stored.",
            _always({"kind": "lost_after_200"}),
        ),
        Scene(
            "dropped-type", "Dropped type", "Events of a type are answered 200 and not stored.",
            lambda text: [{"kind": "lost_after_200", "event_type": text}],
            "the event type", "user.subscription.renewed",
        ),
        Scene(
            "cut-property", "Cut property", "A property is stored with its first 20 characters only.",
            lambda text: [{"kind": "cut_property", "property_name": text, "characters": 20}], _PROPERTY, _SKUS,
        ),
        Scene(
            "removed-property", "Removed property", "A property is not stored.",
            lambda text: [{"kind": "cut_property", "property_name": text, "characters": None}], _PROPERTY, _SKUS,
        ),
        Scene(
            "stored-twice", "Stored twice", "Some events are stored twice, the second time under another uuid.",
            _of_events("stored_twice"), _ONE_IN, "50",
        ),
        Scene(
            "export-too-large", "Export too large", "Exports of many hours are answered 400: too large.",
            _longer_exports("export_too_large"), "the most hours that pass", "1",
        ),
        Scene(
            "export-timeout", "Export timeout", "Exports of many hours are answered 504.",
            _longer_exports("504"), "the most hours that pass", "1",
        ),
        Scene(
            "broken-exports", "Broken exports", "Half of the exports break off in their middle.",
            _always({"kind": "truncated_body", "path": EXPORT_PATH, "probability": 0.5, "seed": _SEED}),
        ),
    )
}  # fmt: skip


def scene_named(name: str) -> Scene:
    """The scene of a name.

    Raises:
        FaultError: there is none; the message names the nearest.
    """
    if name in SCENES:
        return SCENES[name]
    near = difflib.get_close_matches(name, SCENES, 1, 0.5)
    raise FaultError(f"there is no scene {name!r}" + (f": did you mean {near[0]}?" if near else ""))


def start(faults: Faults, name: str, value: str = "") -> None:
    """Starts a scene; one that is on begins anew, with this value.

    Args:
        faults: the rules to which the scene's are added.
        name: the scene's.
        value: what it takes; empty for its default.

    Raises:
        FaultError: there is no such scene, or it cannot take this value.
    """
    scene = scene_named(name)
    if value and not scene.value:
        raise FaultError(f"the scene {name} takes no value")
    rules = [Fault(**rule, scene=name) for rule in scene.rules(value or scene.default)]
    faults.end_scene(name)
    faults.add(*rules)


def listed(faults: Faults) -> list[dict[str, Any]]:
    """All scenes as the control API has them: whether each is on, with which value, and how often it happened."""
    return [
        {
            "name": scene.name,
            "title": scene.title,
            "means": scene.means,
            "value": scene.value,
            "default": scene.default,
            **_state(rule for rule in faults if rule.scene == scene.name),
        }
        for scene in SCENES.values()
    ]


def _state(rules: Iterable[Fault]) -> dict[str, Any]:
    found = list(rules)
    return {"on": any(rule.enabled for rule in found), "happened": sum(rule.fired for rule in found)}


def table() -> str:
    """The scenes as a table of Markdown, for the documentation."""
    rows = []
    for scene in SCENES.values():
        value = scene.value + (f" ({scene.default})" if scene.default else "")
        kinds = dict.fromkeys(f"`{rule['kind']}`" for rule in scene.rules(scene.default))
        rows.append(f"| `{scene.name}` | {scene.means} | {value} | {', '.join(kinds)} |\n")
    head = "| scene | what happens | value (default) | faults |\n|---|---|---|---|\n"
    return head + "".join(rows)
