"""The command line: a thin front on the same code that Dagster runs."""

from __future__ import annotations

import click

from nami_amp_pipeline import __version__
from nami_amp_pipeline.commands.alerts import alerts
from nami_amp_pipeline.commands.apps import apps
from nami_amp_pipeline.commands.backfill import backfill, backfills
from nami_amp_pipeline.commands.base import CommandGroup, Invocation
from nami_amp_pipeline.commands.control_center import control_center
from nami_amp_pipeline.commands.dead_letters import dead_letters
from nami_amp_pipeline.commands.deliveries import audience, deliveries
from nami_amp_pipeline.commands.demo import demo
from nami_amp_pipeline.commands.dev import dev
from nami_amp_pipeline.commands.doctor import doctor
from nami_amp_pipeline.commands.identify import identify
from nami_amp_pipeline.commands.integrations import integrations
from nami_amp_pipeline.commands.keys import keys
from nami_amp_pipeline.commands.load import load
from nami_amp_pipeline.commands.metrics import metrics
from nami_amp_pipeline.commands.migrate import migrate
from nami_amp_pipeline.commands.pending import pending
from nami_amp_pipeline.commands.preview import preview
from nami_amp_pipeline.commands.reconcile import reconcile
from nami_amp_pipeline.commands.repair import repair
from nami_amp_pipeline.commands.retention import retention
from nami_amp_pipeline.commands.run import run
from nami_amp_pipeline.commands.sandbox import sandbox
from nami_amp_pipeline.commands.status import status
from nami_amp_pipeline.commands.trace import trace


@click.group(cls=CommandGroup, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nami-amp", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show where in the program a bug is (also: NAMI_AMP_DEBUG=1).")
@click.pass_obj
def cli(invocation: Invocation, debug: bool) -> None:
    """Sends what happens to your Nami subscribers to Amplitude.

    Events are read from your warehouse, joined with what is known of each user, and posted to the Amplitude projects
    that you set up as integrations: nothing lost, nothing twice.

    'nami-amp demo' shows it all without any account.

    \b
    To set it up:
      nami-amp load events.ndjson --app my-app
      nami-amp integrations add my-app prod --endpoint us --api-key-env AMPLITUDE_API_KEY
      nami-amp run
      nami-amp status
      nami-amp dev
    """
    invocation.debug = invocation.debug or debug


for command in (
    demo,
    load,
    integrations,
    apps,
    run,
    dev,
    control_center,
    status,
    deliveries,
    audience,
    pending,
    trace,
    preview,
    backfill,
    identify,
    backfills,
    alerts,
    metrics,
    dead_letters,
    reconcile,
    retention,
    migrate,
    keys,
    doctor,
    repair,
    sandbox,
):
    cli.add_command(command)


def main() -> None:
    """The entry point ``nami-amp``."""
    cli.main()


if __name__ == "__main__":
    main()
