"""The cast: the first three users of every app, whose stories are the same whatever the seed.

A report of a demo shows them, so that a reader sees what became of a person and not only counts.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from nami_amp_pipeline.sample.payloads import MINUTE, SECOND, stable_uuid
from nami_amp_pipeline.sample.user_life import MONTHLY, SPORTS_MONTHLY, WEEKLY, YEARLY, Life


class Persona(NamedTuple):
    """A user with a story: their ids in one app, and the story in a sentence."""

    name: str
    user_id: str
    external_id: str | None
    story: str


_STORIES: Final = (
    (
        "ada",
        True,
        "Trial that converts, renews, buys a second entitlement on a second device; logged in from the start.",
    ),
    ("bo", True, "Buys anonymously, pauses, falls into grace and recovers; logs in late; one event arrives late."),
    ("cleo", False, "Trial that does not convert, comes back, cancels, expires; never logs in."),
)
CAST_SIZE: Final = len(_STORIES)


def personas_of(app_id: str) -> tuple[Persona, ...]:
    """The cast of an app, in the order in which they install it."""
    return tuple(
        Persona(
            name,
            stable_uuid("cast", app_id, name),
            stable_uuid("account", app_id, name) if account else None,
            story,
        )
        for name, account, story in _STORIES
    )


def play(life: Life, member: Persona) -> None:
    """Let the member live their story, stretched over the time that the life has."""
    {"ada": _ada, "bo": _bo, "cleo": _cleo}[member.name](life, member)


def _ada(life: Life, member: Persona) -> None:
    at = _Clock(life)
    at(0.0)
    life.add_device("apple", stable_uuid("device", member.user_id, "phone"))
    life.log_in(member.external_id or "")
    life.session()
    life.impression(0)
    at(0.02)
    shown = life.impression(1)
    life.now += 40 * SECOND
    life.transaction(MONTHLY, 0.0, shown)
    life.set_flags("in_trial_period")
    life.grant(MONTHLY, days=7)
    life.now += 2 * SECOND
    life.user_event("user.subscription.purchased")
    life.now += SECOND
    life.user_event("user.journey.trial.started")
    at(0.25)
    life.set_flags()
    life.grant(MONTHLY)
    life.user_event("user.journey.trial.converted")
    at(0.4)
    life.add_device("roku", stable_uuid("device", member.user_id, "tv"))
    life.session()
    shown = life.impression(4)
    life.now += MINUTE
    life.transaction(SPORTS_MONTHLY, 12.99, shown)
    life.grant(SPORTS_MONTHLY)
    life.now += 3 * SECOND
    life.user_event("user.subscription.purchased")
    life.repeat_last(30 * MINUTE)
    for part in (0.6, 0.9):
        at(part)
        life.grant(MONTHLY)
        life.user_event("user.subscription.renewed")


def _bo(life: Life, member: Persona) -> None:
    at = _Clock(life)
    at(0.01)
    life.add_device("google", stable_uuid("device", member.user_id, "phone"))
    life.session()
    at(0.05)
    shown = life.impression(2)
    life.now += 20 * SECOND
    life.transaction(WEEKLY, 2.99, shown)
    life.grant(WEEKLY)
    life.now += 2 * SECOND
    life.user_event("user.subscription.purchased")
    at(0.2)
    life.set_flags("in_pause")
    life.revoke(WEEKLY)
    life.user_event("user.subscription.paused")
    at(0.35)
    life.set_flags()
    life.grant(WEEKLY)
    life.user_event("user.subscription.resumed")
    at(0.5)
    life.set_flags("in_grace_period")
    # The news of the failed payment is on its way for longer than the grace lasts.
    life.user_event("user.subscription.in_grace_period", late_us=at.share(0.25))
    at(0.58)
    life.set_flags()
    life.grant(WEEKLY)
    life.user_event("user.subscription.renewal_in_grace_period")
    at(0.7)
    life.log_in(member.external_id or "")
    life.session()
    life.impression(3)
    at(0.82)
    life.grant(WEEKLY)
    life.user_event("user.subscription.renewed")


def _cleo(life: Life, member: Persona) -> None:
    at = _Clock(life)
    at(0.03)
    life.add_device("amazon", stable_uuid("device", member.user_id, "tablet"))
    life.session()
    shown = life.impression(5)
    life.now += MINUTE
    life.transaction(YEARLY, 0.0, shown)
    life.set_flags("in_trial_period")
    life.grant(YEARLY, days=7)
    life.now += 2 * SECOND
    life.user_event("user.subscription.purchased")
    life.now += SECOND
    life.user_event("user.journey.trial.started")
    at(0.15)
    life.set_flags("in_trial_period", "is_cancelled")
    life.user_event("user.subscription.cancelled")
    at(0.27)
    life.lapse(YEARLY, "user.journey.trial.did_not_convert", "user.subscription.expired")
    at(0.45)
    shown = life.impression(4)
    life.now += MINUTE
    life.transaction(WEEKLY, 1.49, shown)
    life.set_flags("in_intro_offer_period")
    life.grant(WEEKLY)
    life.now += 2 * SECOND
    life.user_event("user.subscription.purchased")
    at(0.6)
    life.set_flags("is_cancelled")
    life.user_event("user.subscription.cancelled")
    at(0.75)
    life.lapse(WEEKLY, "user.subscription.expired")
    at(0.9)
    life.impression(4)


class _Clock:
    """Sets a life's clock to a part (0 to 1) of the time that it has."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._begin = life.now

    def share(self, part: float) -> int:
        """That part of the life's time, µs."""
        return int((self._life.until - self._begin) * part)

    def __call__(self, part: float) -> None:
        self._life.now = self._begin + self.share(part)
