"""The life of one sample user: what happens to them, and which Nami events that makes."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Final, NamedTuple

from nami_amp_pipeline.sample import hostile
from nami_amp_pipeline.sample import payloads as rendering
from nami_amp_pipeline.sample.payloads import DAY, HOUR, MINUTE, SECOND, Event


class Product(NamedTuple):
    """A subscription on sale: its SKU, the entitlement it grants, its term and prices in US dollars."""

    sku: str
    entitlement: str
    name: str
    description: str
    days: int
    interval: str
    price: float
    trial_days: int


PRODUCTS: Final = (
    Product("premium_weekly", "premium", "Premium", "Everything, without ads, on every device", 7, "week", 2.99, 3),
    Product("premium_monthly", "premium", "Premium", "Everything, without ads, on every device", 30, "month", 9.99, 7),
    Product("premium_yearly", "premium", "Premium", "Everything, without ads, on every device", 365, "year", 79.0, 7),
    Product("sports_weekly", "sports", "Sport « en direct »", "Live matches & replays", 7, "week", 3.49, 3),
    Product("sports_monthly", "sports", "Sport « en direct »", "Live matches & replays", 30, "month", 12.99, 7),
    Product("family_monthly", "family", "Familie", "Für bis zu sechs Personen", 30, "month", 14.5, 0),
)
WEEKLY, MONTHLY, YEARLY, SPORTS_WEEKLY, SPORTS_MONTHLY, FAMILY = PRODUCTS

PAYWALLS: Final = ("Onboarding", "Été", 'Upsell "50%"', "Settings", "Win-back 🎁", "冬のセール", "Back\\to\\school")
_PAYWALL_TEXTS: Final = tuple(rendering.text(name) for name in PAYWALLS)
_CURRENCIES: Final = ("USD", "USD", "USD", "EUR", "GBP", "JPY", "BRL")
_LOCALES: Final = {"USD": "en_US", "EUR": "fr_FR", "GBP": "en_GB", "JPY": "ja_JP", "BRL": "pt_BR"}
_STORE_ODDS: Final = ("apple",) * 9 + ("google",) * 7 + ("amazon", "roku", "roku", "web")
_GROUPS: Final = ("active_entitlements", "customer_journey_state", "devices")


class Life:
    """One user's state and clock, and the events so far.

    Args:
        app_id: The app that the user is of.
        user_id: Nami's id of the user.
        rng: Where all chance in this life comes from.
        begin_us: The install, µs since 1970.
        until_us: Nothing happens after this, µs since 1970.
        first_number: The number of the first event; numbers tell events apart that are loaded at the same time.
        hostility: Probability, per event, of something that a hostile source might send.
        tidy: Without late, repeated or incomplete deliveries, for lives that tell a story.
    """

    def __init__(
        self,
        app_id: str,
        user_id: str,
        rng: random.Random,
        begin_us: int,
        until_us: int,
        *,
        first_number: int = 0,
        hostility: float = 0.0,
        tidy: bool = False,
    ) -> None:
        self.app_id = app_id
        self.user_id = user_id
        self.rng = rng
        self.now = begin_us
        self.until = until_us
        self.hostility = hostility
        self.external: str | None = None
        self.transaction_id = f"{1_000_000_000_000_000 + rng.getrandbits(46)}"
        self.flags: frozenset[str] = frozenset()
        self.events: list[Event] = []
        self._first_number = first_number
        self._tidy = tidy
        self._owned: list[tuple[str, str]] = []
        self._entitlements: dict[str, tuple[Product, int, str]] = {}
        self._external_kind = "uuid"
        self._entitlements_text = ',"active_entitlements":[]'
        self._devices_text = ',"devices":[]'
        self._external_text = ""
        self._refresh_external_ids()

    @property
    def over(self) -> bool:
        """Whether nothing more happens."""
        return self.now >= self.until

    @property
    def store(self) -> str:
        """The store of the user's first device."""
        return self._owned[0][1]

    def uuid(self) -> str:
        """A new random id."""
        return rendering.random_uuid(self.rng)

    def wait(self, least: int, most: int) -> None:
        """Let between `least` and `most` µs go by."""
        self.now += least + int(self.rng.random() * (most - least))

    def add_device(self, store: str | None = None, ident: str | None = None) -> None:
        """The user signs in on one more device (of a random store, unless told)."""
        self._owned.append((ident or self.uuid(), store or _STORE_ODDS[int(self.rng.random() * len(_STORE_ODDS))]))
        self._devices_text = rendering.devices(self.app_id, self._owned)

    def log_in(self, external: str, kind: str = "uuid") -> None:
        """From now on the user's events carry the app's own id of them."""
        self.external = external
        self._external_kind = kind
        self._refresh_external_ids()

    def _refresh_external_ids(self) -> None:
        self._external_text = rendering.external_ids(self.transaction_id, self.external, self._external_kind)

    def grant(self, product: Product, *, days: float | None = None) -> None:
        """Make the product's entitlement active until its term (or `days`) is over."""
        until = self.now + int((days or product.days) * DAY)
        self._entitlements[product.entitlement] = (product, until, self.store)
        self._refresh_entitlements()

    def revoke(self, product: Product) -> None:
        """Take the product's entitlement away."""
        self._entitlements.pop(product.entitlement, None)
        self._refresh_entitlements()

    def _refresh_entitlements(self) -> None:
        verified = rendering.timestamp(self.now, 1)
        entries = [
            {
                "entitlement_ref_id": product.entitlement,
                "name": product.name,
                "description": product.description,
                "sku_ref_id": product.sku,
                "pending_sku_ref_id": None,
                "expiration": rendering.timestamp(until, 2),
                "last_verified": verified,
                "purchase_platform": store,
            }
            for product, until, store in self._entitlements.values()
        ]
        self._entitlements_text = ',"active_entitlements":' + rendering.text(entries)

    def _emit(self, event_type: str, platform: str, body: tuple[str, ...], *, late_us: int = 0) -> None:
        now = self.now
        if now >= self.until:
            return
        rng = self.rng
        chance = rng.random()
        spelling = 0
        if chance < 0.4:
            spelling = 1
        elif chance < 0.5:
            # The spelling without a fraction is of a whole second, in the table's column too. Rounding up, and the
            # clock with it, keeps what follows from coming before.
            spelling = 2
            self.now = now = now + -now % SECOND
        luck = 0.0 if self._tidy else rng.random()
        delay = SECOND + int(rng.random() * 20 * SECOND) + late_us
        if luck > 0.995:
            delay = 6 * HOUR + int(rng.random() * 3 * DAY)
        elif luck > 0.975:
            delay = 2 * MINUTE + int(rng.random() * 6 * HOUR)
        event = Event(
            now + delay, self._next(), self.app_id, event_type, self.user_id, now, self.uuid(), platform, spelling, body
        )
        if self.hostility and rng.random() < self.hostility:
            event = hostile.spoil(event, rng)
        self.events.append(event)
        if 0.5 < luck < 0.512:
            self.repeat_last(5 * SECOND + int(rng.random() * 2 * DAY))

    def repeat_last(self, after_us: int) -> None:
        """The newest event is delivered once more, `after_us` µs later."""
        event = self.events[-1]
        self.events.append(event._replace(ingested_us=event.ingested_us + after_us, number=self._next()))

    def _next(self) -> int:
        return self._first_number + len(self.events)

    def user_event(self, event_type: str, *, late_us: int = 0) -> None:
        """An event of type `event_type` that carries the user's state as it is now."""
        groups = [self._entitlements_text, rendering.journey(self.flags), self._devices_text]
        extra = ""
        if not self._tidy:
            chance = self.rng.random()
            if chance < 0.02:
                which = int(self.rng.random() * 3)
                groups[which] = "" if chance < 0.01 else f',"{_GROUPS[which]}":null'
            elif chance > 0.95:
                extra = ',"sdk":{"client":"react-native","version":"3.3.8"},"attempt":1,"campaign":null'
        self._emit(event_type, self.store, (*groups, self._external_text, extra), late_us=late_us)

    def device_event(self, event_type: str, body: tuple[str, ...], device: int = 0) -> None:
        """An event of the user's device number `device`, with the text `body` after the common fields."""
        ident, store = self._owned[device]
        platform = rendering.platform_id(self.app_id, store)
        self._emit(event_type, store, (',"device_id":"', ident, '","app_platform_id":"', platform, '"', *body))

    def session(self) -> None:
        """The user opens the app, stays a while and leaves."""
        device = int(self.rng.random() * min(len(self._owned), 3))
        self.device_event("device.session.start", (',"app_env":"production"',), device)
        self.wait(20 * SECOND, 40 * MINUTE)
        self.device_event("device.session.end", (',"app_env":"production"',), device)

    def impression(self, paywall: int | None = None) -> str:
        """The user is shown a paywall; returns the impression's id."""
        chance = self.rng.random()
        which = int(self.rng.random() * len(PAYWALLS)) if paywall is None else paywall
        ident = self.uuid()
        shown = _shown(which, chance < 0.2, chance < 0.5)
        device = int(chance * min(len(self._owned), 3))
        self.device_event("device.impression", (',"impression_id":"', ident, shown), device)
        return ident

    def transaction(self, product: Product, amount: float, impression_id: str, *, sandbox: bool = False) -> None:
        """The user pays (or begins a free trial) on their first device."""
        rng = self.rng
        chance = rng.random()
        currency = _CURRENCIES[int(chance * len(_CURRENCIES))]
        money = f"{round(amount * 150)}" if currency == "JPY" else f"{amount:g}"
        quantity = ("", ',"quantity":1', ',"quantity":"1"', ',"quantity":1', ',"quantity":"2"')[int(rng.random() * 5)]
        env = "sandbox" if sandbox else "production"
        self.device_event(
            "device.transaction",
            (
                f',"impression_id":"{impression_id}","transaction_id":"{rng.getrandbits(50)}",'
                f'"original_transaction_id":"{self.transaction_id}","sku":"{product.sku}","amount":{money},'
                f'"currency":"{currency}"{quantity},"purchase_env":"{env}",'
                f'"app_env":"{"beta_testing" if sandbox else "production"}","source":"user_initiated",'
                f'"locale":"{_LOCALES[currency]}","subscription_interval":"{product.interval}",'
                '"subcription_interval_count":1',
            ),
        )

    def purchase_updated(self, product: Product, cycles: int) -> None:
        """Nami's record of the purchase changed."""
        expires = rendering.timestamp(self.now + product.days * DAY, 2)
        self._emit(
            "purchase.updated",
            self.store,
            (
                f',"collapse_key":"{self.transaction_id}","billing_cycles":{cycles},"canceled_at":null,'
                f'"expires_at":"{expires}","is_active":true,"is_auto_renewable":true,'
                f'"entitlements":[{{"entitlement_ref_id":"{product.entitlement}"}}]',
            ),
        )

    def set_flags(self, *names: str) -> None:
        """The journey flags that are true from now on; having subscribed before is never unlearned."""
        before = ("former_subscriber",) if "former_subscriber" in self.flags else ()
        self.flags = frozenset((*names, *before))

    def lapse(self, product: Product, *event_types: str) -> None:
        """The subscription ends, access is gone, and each of these events says so."""
        self.flags = frozenset({"former_subscriber"})
        self.revoke(product)
        for event_type in event_types:
            self.user_event(event_type)
            if self._tidy:
                self.now += SECOND


@lru_cache(maxsize=64)
def _shown(paywall: int, nowhere: bool, by_user: bool) -> str:
    """The end of an impression's payload, from the quotation mark after its id on."""
    controller = "null" if nowhere else '"HomeViewController"'
    initiator = "user" if by_user else "nami_rules"
    return (
        f'","name":{_PAYWALL_TEXTS[paywall]},"developer_paywall_id":"pw-{paywall}","cta_type":"button",'
        f'"controller_name":{controller},"initiator":"{initiator}","app_env":"production",'
        f'"launch":{{"label":"start","segment":{{"name":"all","size":3}}}}'
    )


def live(life: Life) -> None:
    """An ordinary life: install, look around, perhaps buy, perhaps stay."""
    rng = life.rng
    life.add_device()
    chance = rng.random()
    login_us = _choose_identity(life, chance)
    if chance < 0.002:
        # A shared account, as in a shop or a school.
        for _ in range(39):
            life.add_device()
    if rng.random() < 0.25:
        life.session()
    for _ in range(int(rng.random() * 3)):
        life.wait(MINUTE, 12 * HOUR)
        _log_in_when_due(life, login_us)
        life.impression()
    rounds = 4 if rng.random() < 0.8 else 0
    while rounds and not life.over:
        rounds -= 1
        life.wait(MINUTE, 20 * HOUR)
        _subscribe(life, login_us)
        if rng.random() > 0.65:
            break
        life.wait(DAY // 2, 4 * DAY)


def _choose_identity(life: Life, chance: float) -> int:
    """When the user logs in, µs since 1970: at once, later, or never (far beyond the end)."""
    rng = life.rng
    if chance > 0.7:
        return life.until + DAY
    return life.now if chance < 0.3 else life.now + int(rng.random() * 0.6 * (life.until - life.now))


def _log_in_when_due(life: Life, login_us: int) -> None:
    if life.external is not None or life.now < login_us:
        return
    rng = life.rng
    if life.hostility and rng.random() < 10 * life.hostility:
        life.log_in(*hostile.external_id(rng))
        return
    chance = rng.random()
    if chance < 0.9:
        life.log_in(life.uuid())
    elif chance < 0.96:
        life.log_in(f"{rng.getrandbits(256):064x}", "sha256")
    else:
        life.log_in(str(1000 + rng.getrandbits(31)), "numeric")
    if chance < 0.1:
        life.user_event("user.entitlement.transferred")


def _subscribe(life: Life, login_us: int) -> None:
    """From the paywall to the end of the subscription, or of the user's life here."""
    rng = life.rng
    product = PRODUCTS[(0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 3, 4, 5)[int(rng.random() * 13)]]
    sandbox = rng.random() < 0.04
    shown = life.impression()
    life.wait(4 * SECOND, 5 * MINUTE)
    trial = product.trial_days > 0 and "former_subscriber" not in life.flags and rng.random() < 0.5
    intro = not trial and rng.random() < 0.15
    price = 0.0 if trial else product.price / 2 if intro else product.price
    life.transaction(product, round(price, 2), shown, sandbox=sandbox)
    life.wait(SECOND, 30 * SECOND)
    _log_in_when_due(life, login_us)
    life.set_flags(*(("in_trial_period",) if trial else ("in_intro_offer_period",) if intro else ()))
    life.grant(product, days=product.trial_days if trial else None)
    life.user_event("user.subscription.purchased")
    if rng.random() < 0.06:
        life.wait(2 * MINUTE, 4 * MINUTE)
        life.purchase_updated(product, 1)
    if rng.random() < 0.3:
        life.wait(HOUR, 2 * DAY)
        life.add_device()
    if trial and not _end_trial(life, product, login_us):
        return
    while not life.over and _term(life, product, login_us):
        pass


def _end_trial(life: Life, product: Product, login_us: int) -> bool:
    """The trial runs its days; whether the user goes on as a payer."""
    life.wait(SECOND, 2 * SECOND)
    life.user_event("user.journey.trial.started")
    life.wait(product.trial_days * DAY // 2, product.trial_days * DAY)
    _log_in_when_due(life, login_us)
    chance = life.rng.random()
    if chance < 0.6:
        life.set_flags()
        life.grant(product)
        life.user_event("user.journey.trial.converted")
        return True
    if chance < 0.85:
        life.set_flags("in_trial_period", "is_cancelled")
        life.user_event("user.subscription.cancelled")
        life.wait(HOUR, 2 * DAY)
    life.lapse(product, "user.journey.trial.did_not_convert", "user.subscription.expired")
    return False


def _term(life: Life, product: Product, login_us: int) -> bool:
    """One term of a subscription and how it ends; whether another follows."""
    rng = life.rng
    life.wait(DAY // 2, DAY)
    if rng.random() < 0.2:
        life.impression()
    _log_in_when_due(life, login_us)
    chance = rng.random()
    rest = (product.days - 1) * DAY
    if chance < 0.2:
        life.wait(HOUR, rest // 2)
        life.set_flags("is_cancelled")
        life.user_event("user.subscription.cancelled")
        life.wait(rest // 4, rest // 2)
        life.lapse(product, "user.subscription.expired")
        return False
    if chance < 0.36:
        life.wait(rest - DAY, rest)
        life.set_flags("in_grace_period")
        life.user_event("user.subscription.in_grace_period")
        life.wait(6 * HOUR, 6 * DAY)
        if rng.random() < 0.35:
            life.lapse(product, "user.subscription.expired")
            return False
        life.set_flags()
        life.grant(product)
        life.user_event("user.subscription.renewal_in_grace_period")
        return True
    if chance < 0.55 and life.store == "google":
        life.wait(DAY, rest // 2)
        life.set_flags("in_pause")
        life.revoke(product)
        life.user_event("user.subscription.paused")
        life.wait(DAY, 6 * DAY)
        life.set_flags()
        life.grant(product)
        life.user_event("user.subscription.resumed")
        return True
    if chance > 0.93 and product.entitlement == "premium":
        life.wait(HOUR, 2 * DAY)
        shown = life.impression()
        life.wait(4 * SECOND, MINUTE)
        other = SPORTS_WEEKLY if chance > 0.965 else SPORTS_MONTHLY
        life.transaction(other, other.price, shown)
        life.grant(other)
        life.user_event("user.subscription.purchased")
    life.wait(rest - HOUR, rest)
    life.set_flags()
    life.grant(product)
    life.user_event("user.subscription.renewed")
    return True
