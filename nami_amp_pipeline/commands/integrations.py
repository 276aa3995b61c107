"""``nami-amp integrations``: which events of which app go to which Amplitude project."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from nami_amp_pipeline import contract
from nami_amp_pipeline.commands import integration_options as options
from nami_amp_pipeline.commands.base import Invocation, integration_keys, json_option
from nami_amp_pipeline.commands.completion import app_names, integration_names
from nami_amp_pipeline.commands.integration_options import setting_options
from nami_amp_pipeline.commands.key_sources import KeySources
from nami_amp_pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from nami_amp_pipeline.operations.integrations import Integration

_FIELDS = {"api_key": "API key", "user_id": "user id", "hash": "hashed fields", "exclude": "excluded fields"}


@click.group()
def integrations() -> None:
    """Say which events of which app go to which Amplitude project.

    An integration is named APP/NAME; an app may have several.
    """


@integrations.command()
@click.argument("app", shell_complete=app_names)
@click.argument("name")
@setting_options(is_new=True)
@click.option("--disabled", is_flag=True, help="Add it switched off.")
@click.pass_obj
def add(invocation: Invocation, /, app: str, name: str, disabled: bool, **given: Any) -> None:
    """Send events of APP to an Amplitude project, under NAME.

    The API key is read from an environment variable, a file or standard input, so that it stands in no shell history
    and no list of processes; it is kept encrypted and never shown again.
    """
    from nami_amp_pipeline.operations.integrations import NewIntegration

    sources = KeySources(invocation, given)
    api_key, secret_key = sources.read("api"), sources.read("secret")
    if api_key is None:
        raise Misconfigured("give the API key by --api-key-env, --api-key-file or --api-key-stdin")
    added = invocation.operations.add(
        NewIntegration(
            app_id=app,
            name=name,
            endpoint=given["endpoint"],
            api_key=api_key,
            secret_key=secret_key,
            user_id_kind=given["user_id"],
            anonymous=given["anonymous"],
            events=options.patterns(given["events"]) or ["all"],
            rename=options.renames(given["rename"]),
            start_from=options.start(given["start_from"]),
            enabled=not disabled,
            sandbox=given["sandbox"],
            exclude=given["exclude"],
            hashed=given["hashed"],
            revenue=given["revenue"],
            store_fees=options.fees(given["store_fees"]),
            allow_custom_endpoint=given["allow_custom_endpoint"],
            allow_shared_key=given["allow_shared_key"],
        )
    )
    click.echo(
        f"{added.key} added{' (off)' if disabled else ''}: {_events(added)} to {added.endpoint}, {_start(added)}."
    )
    warning = invocation.operations.app_without_rows(app)
    if warning:
        invocation.complain(warning)


@integrations.command(name="list")
@json_option
@click.pass_obj
def list_integrations(invocation: Invocation, as_json: bool) -> None:
    """Show all integrations."""
    from nami_amp_pipeline.commands import output as screen
    from nami_amp_pipeline.operations.integrations import described, region, state

    found = invocation.operations.integrations()
    if as_json:
        invocation.answer({"integrations": [described(one) for one in found]})
    elif found:
        screen.table(
            ("Integration", "State", "Endpoint", "User id", "No External ID", "Events"),
            [(one.key, state(one), region(one), one.user_id_kind, one.anonymous, _events(one)) for one in found],
            optional=("No External ID", "User id", "Endpoint"),
        )
    else:
        click.echo("There is no integration yet: 'nami-amp integrations add' adds one.")


@integrations.command()
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME", shell_complete=integration_names)
@json_option
@click.pass_obj
def show(invocation: Invocation, names: tuple[str, ...], as_json: bool) -> None:
    """Show all settings of an integration; of the keys only whether they are set."""
    from nami_amp_pipeline.clock import to_text
    from nami_amp_pipeline.commands import output as screen
    from nami_amp_pipeline.operations.integrations import described, state

    found = invocation.operations.integrations(integration_keys(names, in_two_words=True))
    if as_json:
        shown = [described(one) for one in found]
        invocation.answer(shown[0] if len(shown) == 1 else {"integrations": shown})
        return
    for one in found:
        screen.facts(
            {
                "Integration": one.key,
                "State": state(one),
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
                "Selected by": ", ".join(one.patterns),
                "Sandbox": one.sandbox,
                "Excluded": ", ".join(one.exclude) or None,
                "Hashed": ", ".join(one.hashed) or None,
                "Revenue": one.revenue,
                "Store fees": ", ".join(f"{store} {share:g}" for store, share in one.store_fees.items()) or None,
                "Starts": _start(one),
                "Version": one.version,
                "Added": to_text(one.created_at),
            }
        )


@integrations.command()
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME", shell_complete=integration_names)
@setting_options(is_new=False)
@options.clearing_options
@click.option("--enabled/--disabled", "enabled", default=None, help="Switch it on or off.")
@click.option("--if-version", type=int, metavar="N", help="Only if it still has this version, as 'show' tells it.")
@click.pass_obj
def update(invocation: Invocation, /, names: tuple[str, ...], if_version: int | None, **given: Any) -> None:
    """Change settings of an integration; what is not given stays as it is.

    A list that is given takes the place of the one that was set. A change holds for events that are not prepared yet;
    another key or endpoint holds for all that is pending. A halted integration stays halted until it is enabled.
    """
    from nami_amp_pipeline.operations.integrations import IntegrationChange

    key, *others = integration_keys(names, in_two_words=True)
    if others:
        raise Misconfigured("name one integration: a change is made to one at a time")
    sources = KeySources(invocation, given)
    api_key, secret_key = sources.read("api"), sources.read("secret")
    changes = options.given_changes(given)
    if api_key is not None:
        changes["api_key"] = api_key
    if secret_key is not None and given["no_secret_key"]:
        raise Misconfigured("give either --no-secret-key or a secret key, not both")
    if secret_key is not None or given["no_secret_key"]:
        changes["secret_key"] = secret_key
    if not changes:
        raise Misconfigured("nothing to change: give an option, such as --events or --api-key-env")
    allowed = {name: given[name] for name in ("allow_custom_endpoint", "allow_shared_key")}
    updated = invocation.operations.change(key, IntegrationChange(**changes, **allowed), if_version=if_version)
    last = invocation.operations.history(key)[-1:]
    fields = [name for record in last for name in record.what if record.version == updated.version]
    said = ", ".join(_FIELDS.get(name, name.replace("_", " ")) for name in fields)
    click.echo(f"{key}: {said or 'nothing'} changed, version {updated.version}.")
    if updated.halted_reason:
        click.echo(f"It is halted: 'nami-amp integrations test {key}', then 'nami-amp integrations enable {key}'.")


@integrations.command()
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME", shell_complete=integration_names)
@json_option
@click.pass_obj
def history(invocation: Invocation, names: tuple[str, ...], as_json: bool) -> None:
    """Show who changed what of an integration, and when."""
    from nami_amp_pipeline.commands import output as screen
    from nami_amp_pipeline.operations.integrations import recorded

    (key,) = integration_keys(names, in_two_words=True)[:1]
    records = invocation.operations.history(key)
    if as_json:
        invocation.answer({"integration": key, "changes": [recorded(record) for record in records]})
    elif records:
        screen.table(
            ("Version", "At", "By", "What"),
            [
                (
                    record.version,
                    screen.moment(record.at),
                    record.by,
                    "\n".join(f"{name}: {before} -> {after}" for name, (before, after) in record.what.items()),
                )
                for record in records
            ],
            right=("Version",),
            texts=("What",),
            optional=("By",),
        )
    else:
        click.echo(f"No change of {key} is recorded.")


@integrations.command()
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME", shell_complete=integration_names)
@click.pass_obj
def enable(invocation: Invocation, names: tuple[str, ...]) -> None:
    """Switch an integration on; it goes on where it stopped."""
    _switch(invocation, names, on=True)


@integrations.command()
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME", shell_complete=integration_names)
@click.pass_obj
def disable(invocation: Invocation, names: tuple[str, ...]) -> None:
    """Switch an integration off; nothing is sent and nothing is lost."""
    _switch(invocation, names, on=False)


def _switch(invocation: Invocation, names: Sequence[str], *, on: bool) -> None:
    for key in integration_keys(names, in_two_words=True):
        (invocation.operations.enable if on else invocation.operations.disable)(key)
        click.echo(f"{key} is {'on' if on else 'off'}.")


@integrations.command()
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME", shell_complete=integration_names)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove(invocation: Invocation, names: tuple[str, ...], yes: bool) -> None:
    """Remove an integration with what is pending and its dead letters.

    What was sent stays in Amplitude. To stop for a while, use 'disable'.
    """
    found = invocation.operations.integrations(integration_keys(names, in_two_words=True))
    for one in found:
        if not yes:
            if not sys.stdin.isatty():
                raise Misconfigured(f"give --yes to remove {one.key} with what is pending and its dead letters")
            click.confirm(f"Remove {one.key} with what is pending and its dead letters?", abort=True)
        invocation.operations.remove(one.key)
        click.echo(f"{one.key} removed.")


@integrations.command()
@click.argument("names", nargs=-1, metavar="[APP/NAME]...", shell_complete=integration_names)
@json_option
@click.pass_obj
def test(invocation: Invocation, names: tuple[str, ...], as_json: bool) -> int:
    """Ask Amplitude whether it takes an integration's key; no event is stored.

    Without a name all integrations are tested.
    """
    results = invocation.operations.test(integration_keys(names, in_two_words=True) if names else None)
    if as_json:
        invocation.answer(
            {"integrations": [{"integration": one.integration, "ok": one.ok, "result": one.result} for one in results]}
        )
    for one in results:
        if not one.ok:
            invocation.complain(f"{one.integration}: {one.result}")
        elif not as_json:
            click.echo(f"{one.integration}: {one.result}")
    return 0 if all(one.ok for one in results) else 1


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
