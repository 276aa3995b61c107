"""``nami-amp integrations``: which events of which app go to which Amplitude project, or to another destination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from nami_amp_pipeline import contract
from nami_amp_pipeline.commands import integration_options as options
from nami_amp_pipeline.commands.base import Invocation, integration_keys, json_option
from nami_amp_pipeline.commands.completion import app_names, integration_names
from nami_amp_pipeline.commands.destinations import destinations
from nami_amp_pipeline.commands.integration_options import setting_options
from nami_amp_pipeline.commands.integrations_as_code import COMMANDS
from nami_amp_pipeline.commands.key_sources import KeySources
from nami_amp_pipeline.commands.options import confirm, yes_option
from nami_amp_pipeline.destinations import DEFAULT
from nami_amp_pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from nami_amp_pipeline.operations.integrations import Integration

_FIELDS = {"api_key": "API key", "user_id": "user id", "hash": "hashed fields", "exclude": "excluded fields"}


@click.group()
def integrations() -> None:
    """Manage which events of which app go to which Amplitude project.

    An integration is named APP/NAME; an app may have several.
    """


@integrations.command()
@click.argument("app", shell_complete=app_names)
@click.argument("name")
@setting_options(is_new=True)
@click.option("--disabled", is_flag=True, help="Add it disabled.")
@click.pass_obj
def add(invocation: Invocation, /, app: str, name: str, disabled: bool, **given: Any) -> None:
    """Send events of APP to an Amplitude project or another destination, under NAME.

    The API key is read from an environment variable, a file or standard input, so that it appears in no shell history
    or process list; it is stored encrypted and never shown again.
    """
    from nami_amp_pipeline.operations.integrations import NewIntegration, settled

    sources = KeySources(invocation, given)
    fields = sources.fields(given["destination"])
    found = {"endpoint": given["endpoint"], "api_key": sources.read("api"), "secret_key": sources.read("secret")}
    endpoint, api_key, secret_key = settled(given["destination"], **found)
    added = invocation.operations.add(
        NewIntegration(
            app_id=app,
            name=name,
            destination=given["destination"],
            endpoint=endpoint,
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
            fields=fields,
            secret_fields=sources.secret_fields(),
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
        invocation.answer({"integrations": [described(integration) for integration in found]})
    elif found:
        managed = ("Managed by",) if any(integration.managed_by for integration in found) else ()
        several = ("Destination",) if any(integration.destination != DEFAULT for integration in found) else ()
        screen.table(
            ("Integration", "State", *several, "Endpoint", "User id", "No External ID", "Events", *managed),
            [
                (
                    integration.key,
                    state(integration),
                    *((integration.destination,) if several else ()),
                    region(integration),
                    integration.user_id_kind,
                    integration.anonymous,
                    _events(integration),
                    *((integration.managed_by,) if managed else ()),
                )
                for integration in found
            ],
            optional=("No External ID", "User id", "Endpoint", "Destination", "Managed by"),
        )
    else:
        click.echo(screen.sentence(invocation.operations.nothing_here))


@integrations.command()
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME", shell_complete=integration_names)
@json_option
@click.pass_obj
def show(invocation: Invocation, names: tuple[str, ...], as_json: bool) -> None:
    """Show all settings of an integration; keys only as set or not set."""
    from nami_amp_pipeline.clock import to_text
    from nami_amp_pipeline.commands import output as screen
    from nami_amp_pipeline.operations.integrations import described, keys_of, own_fields_of, state

    found = invocation.operations.integrations(integration_keys(names, in_two_words=True))
    if as_json:
        shown = [described(integration) for integration in found]
        invocation.answer(shown[0] if len(shown) == 1 else {"integrations": shown})
        return
    for integration in found:
        screen.facts(
            {
                "Integration": integration.key,
                "State": state(integration),
                "Error": integration.halted_reason or integration.last_error,
                "Destination": integration.destination,
                "Endpoint": integration.endpoint,
                **keys_of(integration),
                **own_fields_of(integration),
                "User id": integration.user_id_kind,
                "No External ID": integration.anonymous,
                "Events": "\n".join(
                    f"{event_type} as {integration.rename[event_type]}"
                    if event_type in integration.rename
                    else event_type
                    for event_type in integration.events
                ),
                "Selected by": ", ".join(integration.patterns),
                "Sandbox": integration.sandbox,
                "Excluded": ", ".join(integration.exclude) or None,
                "Hashed": ", ".join(integration.hashed) or None,
                "Revenue": integration.revenue,
                "Store fees": ", ".join(f"{store} {share:g}" for store, share in integration.store_fees.items())
                or None,
                "Starts": _start(integration),
                "Version": integration.version,
                "Managed by": integration.managed_by,
                "Added": to_text(integration.created_at),
            }
        )


@integrations.command()
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME", shell_complete=integration_names)
@setting_options(is_new=False)
@options.clearing_options
@click.option("--enabled/--disabled", "enabled", default=None, help="Switch it on or off.")
@click.option("--if-version", type=int, metavar="N", help="Change it only if it still has this version (see 'show').")
@click.pass_obj
def update(invocation: Invocation, /, names: tuple[str, ...], if_version: int | None, **given: Any) -> None:
    """Change settings of an integration; the other settings stay as they are.

    A list replaces the old list. A change applies to events that are not prepared yet; a new key or endpoint applies to
    all pending events. A halted integration stays halted until it is enabled.
    """
    from nami_amp_pipeline.operations.integrations import IntegrationChange

    key, *others = integration_keys(names, in_two_words=True)
    if others:
        raise Misconfigured("name exactly one integration")
    sources = KeySources(invocation, given)
    api_key, secret_key = sources.read("api"), sources.read("secret")
    changes = options.given_changes(given)
    if api_key is not None:
        changes["api_key"] = api_key
    if secret_key is not None and given["no_secret_key"]:
        raise Misconfigured("give either --no-secret-key or a secret key, not both")
    if secret_key is not None or given["no_secret_key"]:
        changes["secret_key"] = secret_key
    (known,) = invocation.operations.integrations([key])
    changes |= _own_fields(known, sources, given["no_fields"])
    if not changes:
        raise Misconfigured("nothing to change: give an option, such as --events or --api-key-env")
    allowed = {name: given[name] for name in ("allow_custom_endpoint", "allow_shared_key")}
    updated = invocation.operations.change(key, IntegrationChange(**changes, **allowed), if_version=if_version)
    last = invocation.operations.history(key)[-1:]
    fields = [name for record in last for name in record.what if updated.version > known.version]
    said = ", ".join(_FIELDS.get(name, name.replace("_", " ")) for name in fields)
    click.echo(f"{key}: {said or 'nothing'} changed, version {updated.version}.")
    if updated.halted_reason:
        click.echo(
            f"It is still halted: run 'nami-amp integrations test {key}', then 'nami-amp integrations enable {key}'."
        )


def _own_fields(integration: Integration, sources: KeySources, away: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What changes of the fields that the destination has of its own."""
    from nami_amp_pipeline.operations.integrations import is_secret_field

    fields: dict[str, Any] = dict(sources.fields(integration.destination))
    secrets: dict[str, Any] = dict(sources.secret_fields())
    for name in away:
        if name in fields or name in secrets:
            raise Misconfigured(f"give either --no-field {name} or its value, not both")
        (secrets if is_secret_field(integration, name) else fields)[name] = None
    return {name: found for name, found in (("fields", fields), ("secret_fields", secrets)) if found}


@integrations.command()
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME", shell_complete=integration_names)
@json_option
@click.pass_obj
def history(invocation: Invocation, names: tuple[str, ...], as_json: bool) -> None:
    """Show who changed which settings of an integration, and when."""
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
    """Switch an integration on; it continues where it stopped."""
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
@yes_option
@click.pass_obj
def remove(invocation: Invocation, names: tuple[str, ...], yes: bool) -> None:
    """Remove an integration with its pending events and dead letters.

    Events that were sent stay in Amplitude. To stop for a while, use 'disable'.
    """
    found = invocation.operations.integrations(integration_keys(names, in_two_words=True))
    for integration in found:
        confirm(f"remove {integration.key} with its pending events and dead letters", yes=yes)
        invocation.operations.remove(integration.key)
        click.echo(f"{integration.key} removed.")


@integrations.command()
@click.argument("names", nargs=-1, metavar="[APP/NAME]...", shell_complete=integration_names)
@json_option
@click.pass_obj
def test(invocation: Invocation, names: tuple[str, ...], as_json: bool) -> int:
    """Ask Amplitude, or another destination, whether it accepts an integration's key; no event is stored.

    Without a name all integrations are tested.
    """
    results = invocation.operations.test(integration_keys(names, in_two_words=True) if names else None)
    if as_json:
        invocation.answer(
            {"integrations": [{"integration": row.integration, "ok": row.ok, "result": row.result} for row in results]}
        )
    for row in results:
        if not row.ok:
            invocation.complain(f"{row.integration}: {row.result}")
        elif not as_json:
            click.echo(f"{row.integration}: {row.result}")
    return 0 if all(row.ok for row in results) else 1


@integrations.command(name="send-test-event")
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME", shell_complete=integration_names)
@click.option(
    "--event",
    "event_type",
    type=click.Choice(contract.event_type_names()),
    default="user.subscription.purchased",
    show_default=True,
    metavar="TYPE",
    help="The event type.",
)
@json_option
@click.pass_obj
def send_test_event(invocation: Invocation, names: tuple[str, ...], event_type: str, as_json: bool) -> int:
    """Send one made-up event, to find it in Amplitude or another destination.

    It is of a made-up user whose id begins with 'nami-test-', and counts as one event there. Nothing of it is kept
    here.
    """
    key, *others = integration_keys(names, in_two_words=True)
    if others:
        raise Misconfigured("name exactly one integration")
    sent = invocation.operations.send_trial_event(key, event_type)
    if as_json:
        invocation.answer({"integration": key, **sent.to_json()})
    elif sent.ok:
        where = "find it at Users, by" if sent.title == "Amplitude" else "its user is"
        click.echo(f"{key}: {sent.title} took it after {sent.milliseconds:,} ms; {where} {sent.user}.")
    if not sent.ok:
        invocation.complain(f"{key}: {sent.title} did not take it ({sent.status or 'no answer'}): {sent.answer}")
    return 0 if sent.ok else 1


for command in (*COMMANDS, destinations):
    integrations.add_command(command)


def _events(integration: Integration) -> str:
    chosen = len(integration.events)
    return (
        f"all {chosen} event types"
        if chosen == len(contract.EVENT_TYPES)
        else f"{chosen} of {len(contract.EVENT_TYPES)} event types"
    )


def _start(integration: Integration) -> str:
    from nami_amp_pipeline.commands import output as screen

    return "from the beginning" if integration.start_from is None else f"from {screen.moment(integration.start_from)}"
