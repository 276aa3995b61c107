"""``nami-amp sandbox``: a local Amplitude to develop against, with scenes of what can go wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nami_amp_pipeline.commands.base import Invocation
from nami_amp_pipeline.commands.completion import scene_names
from nami_amp_pipeline.commands.key_sources import KeySources
from nami_amp_pipeline.errors import Misconfigured, NamiAmpError

if TYPE_CHECKING:
    from nami_amp_pipeline.sandbox import Project


def _list_scenes(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from nami_amp_pipeline.commands import output as screen
    from nami_amp_pipeline.sandbox import SCENES

    screen.table(
        ("Scene", "What happens", "Value", "Default"),
        [(scene.name, scene.means, scene.value, scene.default) for scene in SCENES.values()],
        texts=("What happens", "Value"),
        optional=("Default", "Value"),
    )
    ctx.exit()


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="The port; 0 takes a free port."
)
@click.option(
    "--journal", type=click.Path(path_type=Path, dir_okay=False), help="Keep the received events in this file."
)
@click.option(
    "--project",
    "projects",
    multiple=True,
    metavar="NAME=VAR[,VAR]",
    help="Name the project of the API key that is in environment variable VAR; a second variable holds its secret key. "
    "May be given several times. Projects of your integrations have the names of those.",
)
@click.option("--only-projects", is_flag=True, help="Answer that every other API key is wrong.")
@click.option(
    "--scene",
    "wanted",
    multiple=True,
    metavar="NAME[=VALUE]",
    shell_complete=scene_names,
    help="Start with this scene on; may be given several times. The page has a button for each.",
)
@click.option(
    "--list-scenes", is_flag=True, is_eager=True, expose_value=False, callback=_list_scenes, help="Show all scenes."
)
@click.option(
    "--export-delay",
    type=click.FloatRange(0, 48),
    default=2.0,
    show_default=True,
    metavar="HOURS",
    help="How long after its end an hour can be exported; 0 exports at once.",
)
@click.pass_obj
def sandbox(
    invocation: Invocation,
    port: int,
    journal: Path | None,
    projects: tuple[str, ...],
    only_projects: bool,
    wanted: tuple[str, ...],
    export_delay: float,
) -> None:
    """Start a local Amplitude to develop against.

    It is as strict as Amplitude's documentation, takes any API key, and shows what it received on a page. Ctrl-C ends
    it.
    """
    from nami_amp_pipeline.sandbox import FaultError, Options, Sandbox, serve, start_scene

    known = _projects(invocation, projects)
    if only_projects and not known:
        raise Misconfigured("--only-projects needs a --project")
    try:
        amplitude = Sandbox(
            projects=known,
            any_key=not only_projects,
            options=Options(export_delay_hours=export_delay),
            journal=journal,
            names=_names(invocation),
        )
    except OSError as error:
        raise Misconfigured(f"cannot open {journal}: {error.strerror or error}") from None

    def ready(url: str) -> None:
        click.echo(f"Local Amplitude at {url} (its page shows the received events); Ctrl-C stops it.")
        click.echo(f"Use it with: --endpoint {url}/2/httpapi --allow-custom-endpoint")
        if wanted:
            click.echo(f"Scenes that are on: {', '.join(wanted)}; the page stops them.")
        sys.stdout.flush()

    try:
        for text in wanted:
            name, _, value = text.partition("=")
            start_scene(amplitude.faults, name.strip(), value.strip())
        serve(amplitude, port=port, on_ready=ready)
    except FaultError as error:
        raise Misconfigured(f"--scene {text}: {error} ('nami-amp sandbox --list-scenes' shows all)") from None
    except OSError as error:
        raise Misconfigured(f"cannot listen on port {port}: {error.strerror or error}") from None
    finally:
        amplitude.close()


def _projects(invocation: Invocation, given: Sequence[str]) -> dict[str, Project]:
    """The projects by API key, of ``NAME=VAR`` and ``NAME=VAR,SECRET_VAR``."""
    from nami_amp_pipeline.sandbox import Project

    found: dict[str, Project] = {}
    for text in given:
        name, equals, variables = text.rpartition("=")
        names = variables.split(",")
        if not name.strip() or not equals or len(names) > 2 or not all(names):
            raise Misconfigured(
                "--project takes NAME=VAR or NAME=VAR,VAR: a name, and the environment variables of the API key and "
                "the secret key"
            )
        keys = [_key(invocation, variable) for variable in names]
        found[keys[0]] = Project(name=name.strip(), secret_key=keys[1] if len(keys) == 2 else None)
    return found


def _key(invocation: Invocation, variable: str) -> str:
    sources: Mapping[str, Any] = {"api_key_env": variable}
    secret = KeySources(invocation, sources).read("api")
    assert secret is not None  # it was given
    return secret.reveal()


def _names(invocation: Invocation) -> Callable[[], Mapping[str, str]]:
    """Finds what the integrations call their projects; nothing where the settings cannot be read."""

    def names() -> Mapping[str, str]:
        from nami_amp_pipeline.operations.key_names import names_of_keys
        from nami_amp_pipeline.sandbox import key_digest

        try:
            return names_of_keys(invocation.settings, key_digest)
        except NamiAmpError:
            return {}

    return names
