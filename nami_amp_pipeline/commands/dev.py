"""``nami-amp dev``: Dagster and the Control Center on this home, and a local Amplitude where it is needed."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nami_amp_pipeline.commands.base import Invocation
from nami_amp_pipeline.errors import Blocked

if TYPE_CHECKING:
    from nami_amp_pipeline.dagster_support.dev import Session


@click.command()
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Where Dagster's pages are; by default the port of the last time, or a free one.",
)
@click.option("--open", "opens", is_flag=True, help="Open Dagster's pages in the browser.")
@click.pass_obj
def dev(invocation: Invocation, port: int | None, opens: bool) -> int:
    """Start Dagster on this home, with its schedule, and the Control Center, and print where their pages are.

    Where integrations point at a local Amplitude that does not run, it is started too, with the events that it had.
    What the processes print is in files under dev/ in the home. Ctrl-C ends all of them, a run under way included,
    which records what it did.
    """
    from nami_amp_pipeline.commands import output as screen
    from nami_amp_pipeline.dagster_support import dev as library
    from nami_amp_pipeline.dagster_support.children import ChildDied, Ended, listening
    from nami_amp_pipeline.dagster_support.ports import local_ports
    from nami_amp_pipeline.destinations import DEFAULT

    settings = invocation.settings
    library.check_environment()
    known = library.under_way(settings)
    if known is not None and opens and known.url:
        webbrowser.open(known.url)
    with library.alone(settings) as lock:
        integrations = invocation.operations.integrations()
        endpoints = [row.endpoint for row in integrations if row.destination == DEFAULT]
        invocation.close()
        session = library.Dev(settings, endpoints, _sandbox, _control_center, port)
        with library.short_folder() as sockets, listening(keeps=[lock], removes=[sockets]) as children:
            try:
                with screen.spinner("Starting Dagster …"):
                    running = session.start(children, sockets)
                sandboxes = [number for number in local_ports(endpoints) if number not in session.strangers]
                _show(running, settings.home.absolute(), sandboxes)
                if not integrations:
                    nothing_here = screen.sentence(invocation.operations.nothing_here)
                    screen.say(f"{nothing_here} 'nami-amp demo' shows it all.")
                screen.say("Ctrl-C ends it.")
                sys.stdout.flush()
                for number in session.strangers:
                    invocation.complain(
                        f"integrations send to port {number} of this machine, where a program listens that is no local "
                        "Amplitude: end that program and start this again"
                    )
                if opens and not webbrowser.open(running.url):
                    invocation.complain(f"there is no browser that could open {running.url}")
                children.wait_until(lambda: False)
            except Ended as ended:
                return 128 + ended.number
            except ChildDied as died:
                child = died.child
                raise Blocked(
                    f"the {child.name} {child.how_it_ended}, and the others were stopped; its log is {child.log}"
                ) from None
            finally:
                with screen.spinner("Stopping …"):
                    library.stop(children)
    return 0


def _sandbox(port: int, events: Path) -> list[str]:
    """The command that starts a local Amplitude."""
    return [sys.executable, "-m", "nami_amp_pipeline.cli", "sandbox", "--port", str(port), "--journal", str(events)]


def _control_center(port: int) -> list[str]:
    """The command that starts the Control Center."""
    return [sys.executable, "-m", "nami_amp_pipeline.cli", "control-center", "--port", str(port)]


def _show(session: Session, home: Path, sandboxes: Sequence[int]) -> None:
    from nami_amp_pipeline.commands import output as screen

    screen.facts(
        {
            "Dagster": session.url,
            "Control Center": session.control_center,
            "Report": f"{session.url}/assets/delivery_report",
            "Sandbox": ", ".join(f"http://127.0.0.1:{port}" for port in sandboxes) or None,
            "Home": home,
            "Logs": home / "dev",
        }
    )
