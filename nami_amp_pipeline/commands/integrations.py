"""``nami-amp integrations``: which events of which app go to which Amplitude project."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from nami_amp_pipeline import contract
from nami_amp_pipeline.commands.base import Invocation, integration_keys, json_option, parse_time
from nami_amp_pipeline.commands.key_sources import KeySources, key_options
from nami_amp_pipeline.errors import Busy, Misconfigured

if TYPE_CHECKING:
    from nami_amp_pipeline.state.integrations import Integration


@click.group()
def integrations() -> None:
    """Say which events of which app go to which Amplitude project.

    An integration is named APP/NAME; an app may have several.
    """


@integrations.command()
@click.argument("app")
@click.argument("name")
@click.option("--endpoint", required=True, metavar="us|eu|URL", help="Where the Amplitude project is.")
@click.option("--allow-custom-endpoint", is_flag=True, help="Let events go to a host that is not Amplitude's.")
@key_options("api", "the API key")
@key_options("secret", "the secret key, which only reconciliation needs")
@click.option(
    "--user-id",
    type=click.Choice(contract.USER_ID_KINDS),
    default="external_id",
    show_default=True,
    help="What users are called in Amplitude.",
)
@click.option(
    "--anonymous",
    type=click.Choice(contract.ANONYMOUS_POLICIES),
    default="skip",
    show_default=True,
    help="What to do with events of users who have no External ID yet.",
)
@click.option(
    "--events",
    multiple=True,
    metavar="all|TYPE[,TYPE|PREFIX.*…]",
    help="Which event types to send; 'user.subscription.*' means all that begin so.  [default: all]",
)
@click.option(
    "--start-from",
    default="now",
    show_default=True,
    metavar="now|beginning|TIME",
    help="The first events to send, by when they came into the warehouse.",
)
@click.option(
    "--rename", multiple=True, metavar="OLD=NEW", help="Another name in Amplitude; may be given several times."
)
@click.option("--disabled", is_flag=True, help="Add it switched off.")
@click.pass_obj
def add(
    invocation: Invocation,
    /,
    app: str,
    name: str,
    endpoint: str,
    allow_custom_endpoint: bool,
    user_id: contract.UserIdKind,
    anonymous: contract.AnonymousPolicy,
    events: tuple[str, ...],
    start_from: str,
    rename: tuple[str, ...],
    disabled: bool,
    **sources: Any,
) -> None:
    """Send events of APP to an Amplitude project, under NAME.

    The API key is read from an environment variable, a file or standard input, so that it stands in no shell history
    and no list of processes; it is kept encrypted and never shown again.
    """
    from nami_amp_pipeline.clock import micros, system_clock
    from nami_amp_pipeline.state import integrations as stored

    given = KeySources(invocation, sources)
    api_key, secret_key = given.read("api"), given.read("secret")
    if api_key is None:
        raise Misconfigured("give the API key by --api-key-env, --api-key-file or --api-key-stdin")
    patterns = [pattern.strip() for part in events for pattern in part.split(",") if pattern.strip()]
    if start_from == "now":
        start: int | None = micros(system_clock)
    else:
        start = None if start_from == "beginning" else parse_time(start_from, "--start-from")
    added = stored.add(
        invocation.store,
        invocation.cipher,
        stored.NewIntegration(
            app_id=app,
            name=name,
            endpoint=endpoint,
            api_key=api_key,
            secret_key=secret_key,
            user_id_kind=user_id,
            anonymous=anonymous,
            events=patterns or ["all"],
            rename=_renames(rename),
            start_from=start,
            enabled=not disabled,
            allow_custom_endpoint=allow_custom_endpoint,
        ),
    )
    click.echo(
        f"{added.key} added{' (off)' if disabled else ''}: {_events(added)} to {added.endpoint}, {_start(added)}."
    )


def _renames(pairs: Sequence[str]) -> dict[str, str]:
    renames = {}
    for pair in pairs:
        old, sep, new = pair.partition("=")
        if not sep:
            raise Misconfigured(f"--rename {pair!r} must be OLD=NEW")
        renames[old.strip()] = new.strip()
    return renames


@integrations.command(name="list")
@json_option
@click.pass_obj
def list_integrations(invocation: Invocation, as_json: bool) -> None:
    """Show all integrations."""
    from nami_amp_pipeline.commands import output as screen
    from nami_amp_pipeline.state.integrations import all_integrations

    found = all_integrations(invocation.store)
    if as_json:
        invocation.answer({"integrations": [_described(one) for one in found]})
    elif found:
        screen.table(
            ("Integration", "State", "Endpoint", "User id", "No External ID", "Events"),
            [(one.key, _state(one), _region(one), one.user_id_kind, one.anonymous, _events(one)) for one in found],
        )
    else:
        click.echo("There is no integration yet: 'nami-amp integrations add' adds one.")


@integrations.command()
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME")
@json_option
@click.pass_obj
def show(invocation: Invocation, names: tuple[str, ...], as_json: bool) -> None:
    """Show all settings of an integration; of the keys only whether they are set."""
    from nami_amp_pipeline.clock import to_text
    from nami_amp_pipeline.commands import output as screen
    from nami_amp_pipeline.state.integrations import all_integrations

    found = all_integrations(invocation.store, integration_keys(names, in_two_words=True))
    if as_json:
        described = [_described(one) for one in found]
        invocation.answer(described[0] if len(described) == 1 else {"integrations": described})
        return
    for one in found:
        screen.facts(
            {
                "Integration": one.key,
                "State": _state(one),
                "Error": one.halted_reason or one.last_error,
                "Endpoint": one.endpoint,
                "API key": "set",
                "Secret key": "set" if one.secret_key else "not set",
                "User id": one.user_id_kind,
                "No External ID": one.anonymous,
                "Events": "\n".join(
                    f"{event_type} as {one.rename[event_type]}" if event_type in one.rename else event_type
                    for event_type in one.events
                ),
                "Starts": _start(one),
                "Added": to_text(one.created_at),
            }
        )


@integrations.command()
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME")
@click.option("--endpoint", metavar="us|eu|URL", help="Where the Amplitude project is.")
@click.option("--allow-custom-endpoint", is_flag=True, help="Let events go to a host that is not Amplitude's.")
@key_options("api", "the new API key")
@key_options("secret", "the new secret key, which only reconciliation needs")
@click.pass_obj
def update(
    invocation: Invocation, /, names: tuple[str, ...], endpoint: str | None, allow_custom_endpoint: bool, **sources: Any
) -> None:
    """Give an integration other keys, or another endpoint.

    What is pending goes there with the next run. A halted integration stays halted until it is enabled.
    """
    from nami_amp_pipeline.state import integrations as stored

    key, *others = integration_keys(names, in_two_words=True)
    if others:
        raise Misconfigured("name one integration: a key or an endpoint is that of one project")
    given = KeySources(invocation, sources)
    api_key, secret_key = given.read("api"), given.read("secret")
    changed = {"endpoint": endpoint, "API key": api_key, "secret key": secret_key}
    if not any(changed.values()):
        raise Misconfigured("nothing to change: give an --endpoint, --api-key-… or --secret-key-…")
    updated = stored.update(
        invocation.store,
        invocation.cipher,
        key,
        api_key=api_key,
        secret_key=secret_key,
        endpoint=endpoint,
        allow_custom_endpoint=allow_custom_endpoint,
    )
    click.echo(f"{key}: {', '.join(what for what, value in changed.items() if value)} changed.")
    if updated.halted_reason:
        click.echo(f"It is halted: 'nami-amp integrations test {key}', then 'nami-amp integrations enable {key}'.")


@integrations.command()
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME")
@click.pass_obj
def enable(invocation: Invocation, names: tuple[str, ...]) -> None:
    """Switch an integration on; it goes on where it stopped."""
    _switch(invocation, names, on=True)


@integrations.command()
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME")
@click.pass_obj
def disable(invocation: Invocation, names: tuple[str, ...]) -> None:
    """Switch an integration off; nothing is sent and nothing is lost."""
    _switch(invocation, names, on=False)


def _switch(invocation: Invocation, names: Sequence[str], *, on: bool) -> None:
    from nami_amp_pipeline.state.integrations import set_enabled

    for key in integration_keys(names, in_two_words=True):
        set_enabled(invocation.store, key, enabled=on)
        click.echo(f"{key} is {'on' if on else 'off'}.")


@integrations.command()
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove(invocation: Invocation, names: tuple[str, ...], yes: bool) -> None:
    """Remove an integration with what is pending and its dead letters.

    What was sent stays in Amplitude. To stop for a while, use 'disable'.
    """
    from nami_amp_pipeline.state import integrations as stored

    found = stored.all_integrations(invocation.store, integration_keys(names, in_two_words=True))
    for one in found:
        if not yes:
            if not sys.stdin.isatty():
                raise Misconfigured(f"give --yes to remove {one.key} with what is pending and its dead letters")
            click.confirm(f"Remove {one.key} with what is pending and its dead letters?", abort=True)
        # A run that delivers for it right now must not have it pulled away.
        if not invocation.store.acquire([f"integration:{one.id}"]):
            raise Busy(f"a run delivers for {one.key} right now: remove it when that has ended")
        for name in stored.remove(invocation.store, one.key):
            (invocation.settings.data_dir / name).unlink(missing_ok=True)
        click.echo(f"{one.key} removed.")


@integrations.command()
@click.argument("names", nargs=-1, metavar="[APP/NAME]...")
@json_option
@click.pass_obj
def test(invocation: Invocation, names: tuple[str, ...], as_json: bool) -> int:
    """Ask Amplitude whether it takes an integration's key; no event is stored.

    Without a name all integrations are tested.
    """
    from nami_amp_pipeline.commands.connection import check_connection
    from nami_amp_pipeline.state.integrations import all_integrations

    found = all_integrations(invocation.store, integration_keys(names, in_two_words=True) if names else None)
    results = [
        (one.key, *check_connection(one.endpoint, invocation.cipher.decrypt(one.api_key), invocation.settings))
        for one in found
    ]
    if as_json:
        invocation.answer(
            {"integrations": [{"integration": key, "ok": ok, "result": text} for key, ok, text in results]}
        )
    for key, ok, text in results:
        if not ok:
            invocation.complain(f"{key}: {text}")
        elif not as_json:
            click.echo(f"{key}: {text}")
    return 0 if all(ok for _, ok, _ in results) else 1


def _described(one: Integration) -> dict[str, Any]:
    from nami_amp_pipeline.clock import to_text

    return {
        "integration": one.key,
        "state": _state(one),
        "error": one.halted_reason or one.last_error,
        "endpoint": one.endpoint,
        "api_key": "set",
        "secret_key": "set" if one.secret_key else "not set",
        "user_id": one.user_id_kind,
        "anonymous": one.anonymous,
        "events": list(one.events),
        "rename": dict(one.rename),
        "start_from": to_text(one.start_from) or "beginning",
        "created_at": to_text(one.created_at),
    }


def _state(one: Integration) -> str:
    if not one.enabled:
        return "disabled"
    return "halted" if one.halted_reason else "enabled"


def _region(one: Integration) -> str:
    regions = {url: region for region, url in contract.ENDPOINTS.items()}
    return regions.get(one.endpoint) or urlsplit(one.endpoint).netloc


def _events(one: Integration) -> str:
    chosen = len(one.events)
    return (
        f"all {chosen} event types"
        if chosen == len(contract.EVENT_TYPES)
        else f"{chosen} of {len(contract.EVENT_TYPES)} event types"
    )


def _start(one: Integration) -> str:
    from nami_amp_pipeline.commands import output as screen

    return "from the beginning" if one.start_from is None else f"from {screen.moment(one.start_from)}"
