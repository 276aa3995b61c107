"""The options of ``nami-amp integrations add`` and ``update``, and what their values mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from nami_amp_pipeline import contract
from nami_amp_pipeline.commands.completion import destination_names, event_types
from nami_amp_pipeline.commands.completion import renames as renames_of
from nami_amp_pipeline.commands.key_sources import field_options, key_options
from nami_amp_pipeline.destinations import DEFAULT
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.times import parse_time

Decorator = Callable[[Any], Any]
Default = Callable[[object], Mapping[str, Any]]


def setting_options(*, is_new: bool) -> Decorator:
    """All settings of an integration.

    Args:
        is_new: whether it is added: then what is not given has its default, otherwise it stays as it is.
    """

    def default(value: object) -> dict[str, Any]:
        return {"default": value, "show_default": True} if is_new else {"default": None}

    options = [*_addresses(is_new=is_new, default=default), *_contents(default)]

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def destination_option(command: Any) -> Any:
    """What receives the events."""
    option = click.option(
        "--destination",
        default=DEFAULT,
        show_default=True,
        metavar="NAME",
        shell_complete=destination_names,
        help="What receives the events: amplitude, http (any endpoint), or one that another package adds.",
    )
    return option(command)


def _addresses(*, is_new: bool, default: Default) -> list[Decorator]:
    """Where events go, of whom, and which."""
    return [
        *([destination_option] if is_new else []),
        click.option(
            "--endpoint", metavar="us|eu|URL", help="Where the Amplitude project is, or the URL of another destination."
        ),
        click.option(
            "--allow-custom-endpoint", is_flag=True, help="Allow an endpoint that does not belong to Amplitude."
        ),
        key_options("api", "the API key" if is_new else "the new API key"),
        key_options("secret", f"the {'' if is_new else 'new '}secret key (only reconciliation needs it)"),
        field_options,
        click.option(
            "--allow-shared-key",
            is_flag=True,
            help="Allow an API key that another integration uses for some of the same event types.",
        ),
        click.option(
            "--user-id",
            type=click.Choice(contract.USER_ID_KINDS),
            help="What becomes the user id in Amplitude.",
            **default("external_id"),
        ),
        click.option(
            "--anonymous",
            type=click.Choice(contract.ANONYMOUS_POLICIES),
            help="What to do with events of users who have no External ID yet.",
            **default("skip"),
        ),
        click.option(
            "--events",
            multiple=True,
            metavar="all|TYPE[,TYPE|PREFIX.*…]",
            shell_complete=event_types,
            help="Which event types to send; 'user.subscription.*' selects current and future types with this prefix."
            + ("  [default: all]" if is_new else ""),
        ),
    ]


def _contents(default: Default) -> list[Decorator]:
    """From when, and what of each event."""
    return [
        click.option(
            "--start-from",
            metavar="now|beginning|TIME",
            help="Send events that were loaded into the warehouse from this time on.",
            **default("now"),
        ),
        click.option(
            "--rename",
            multiple=True,
            metavar="OLD=NEW",
            shell_complete=renames_of,
            help="Rename an event type in Amplitude; may be given several times.",
        ),
        click.option(
            "--sandbox",
            type=click.Choice(contract.SANDBOX_POLICIES),
            help="What to do with events of a store's sandbox; 'only' leaves out production events.",
            **default("send"),
        ),
        click.option("--exclude", multiple=True, metavar="FIELD", help="A payload field that is never sent."),
        click.option(
            "--hash", "hashed", multiple=True, metavar="FIELD", help="A payload field that is sent as a hash."
        ),
        click.option(
            "--revenue",
            type=click.Choice(contract.REVENUE_KINDS),
            help="The price to send: the full amount, the amount less the store's fee, or none.",
            **default("gross"),
        ),
        click.option(
            "--store-fee",
            "store_fees",
            multiple=True,
            metavar="PLATFORM=SHARE",
            help=f"The store's share by event_platform, such as apple=0.15.  [default: {contract.STORE_FEE:g}]",
        ),
    ]


def clearing_options(command: Any) -> Any:
    """What takes settings away that an integration has."""
    command = click.option(
        "--no-field", "no_fields", multiple=True, metavar="NAME", help="Take a field of the destination away."
    )(command)
    for name, what in (
        ("--no-secret-key", "Remove the secret key."),
        ("--no-store-fees", "Use the default fee for every store."),
        ("--no-hash", "Hash no field."),
        ("--no-exclude", "Exclude no field."),
        ("--no-rename", "Use Nami's event names."),
    ):
        command = click.option(name, is_flag=True, help=what)(command)
    return command


def patterns(given: Sequence[str]) -> list[str]:
    """The selection of event types, of parts with commas."""
    return [pattern.strip() for part in given for pattern in part.split(",") if pattern.strip()]


def renames(pairs: Sequence[str]) -> dict[str, str]:
    """Names by Nami's event type.

    Raises:
        Misconfigured: one is not ``OLD=NEW``.
    """
    return dict(_pair(pair, "--rename", "OLD=NEW") for pair in pairs)


def fees(pairs: Sequence[str]) -> dict[str, float]:
    """Shares by ``event_platform``.

    Raises:
        Misconfigured: one is not ``PLATFORM=SHARE``.
    """
    shares = {}
    for pair in pairs:
        platform, share = _pair(pair, "--store-fee", "PLATFORM=SHARE")
        try:
            shares[platform] = float(share)
        except ValueError:
            raise Misconfigured(f"--store-fee {pair!r} must be PLATFORM=SHARE, such as apple=0.15") from None
    return shares


def start(text: str) -> int | None:
    """Where to begin, in µs since the epoch; None for the beginning.

    Raises:
        Misconfigured: it is no time.
    """
    from nami_amp_pipeline.clock import micros, system_clock

    if text == "now":
        return micros(system_clock)
    return None if text == "beginning" else parse_time(text, "--start-from")


def given_changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """What an update changes, as fields of ``IntegrationChange``, without the keys.

    Args:
        options: of :func:`setting_options` and :func:`clearing_options`, by name.

    Raises:
        Misconfigured: a value cannot be read, or is given and taken away at once.
    """
    names = {"user_id": "user_id_kind"}
    plain = ("endpoint", "user_id", "anonymous", "sandbox", "revenue", "enabled")
    changes = {names.get(name, name): options[name] for name in plain if options[name] is not None}
    if options["start_from"] is not None:
        changes["start_from"] = start(options["start_from"])
    if options["events"]:
        changes["events"] = patterns(options["events"])
    for name, no, read in (
        ("rename", "no_rename", renames),
        ("exclude", "no_exclude", list),
        ("hashed", "no_hash", list),
        ("store_fees", "no_store_fees", fees),
    ):
        if options[name] and options[no]:
            raise Misconfigured(f"give either --{no.replace('_', '-')} or values, not both")
        if options[name] or options[no]:
            changes[name] = read(options[name])
    return changes


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    before, separator, after = text.partition("=")
    if not separator:
        raise Misconfigured(f"{option} {text!r} must be {form}")
    return before.strip(), after.strip()
