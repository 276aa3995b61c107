"""What the shell completes: integrations, apps, event types, reasons. It asks the store, and offers nothing without."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from nami_amp_pipeline import contract

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

    from nami_amp_pipeline.operations.api import Operations


def integration_names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """``APP/NAME`` of all integrations."""
    # A shell that completes is no place for errors.
    with suppress(Exception), _operations() as operations:
        return _matching((integration.key for integration in operations.integrations()), incomplete)
    return []


def app_names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The apps that are known."""
    with suppress(Exception), _operations() as operations:
        return _matching((app.app_id for app in operations.apps()), incomplete)
    return []


def event_types(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The event types that can be selected, their prefixes, and ``all``; behind a comma the next of a list."""
    done, comma, word = incomplete.rpartition(",")
    names = contract.event_type_names()
    prefixes = {name[: place + 1] + "*" for name in names for place, letter in enumerate(name) if letter == "."}
    return _matching(["all", *names, *sorted(prefixes)], word, before=done + comma)


def renames(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Event types, each with the ``=`` that its new name follows."""
    return _matching([f"{name}=" for name in contract.event_type_names()], incomplete)


def destination_names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The destinations."""
    from nami_amp_pipeline.destinations import DESTINATIONS
    from nami_amp_pipeline.settings import Settings

    Settings.load()  # which may name modules with some
    return _matching(DESTINATIONS, incomplete)


def dead_letter_reasons(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The reasons of dead letters."""
    from nami_amp_pipeline.operations.reasons import codes

    return _matching(codes("dead_letter"), incomplete)


def scene_names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The scenes of the sandbox."""
    from nami_amp_pipeline.sandbox import SCENES

    return _matching(SCENES, incomplete)


def _operations() -> Operations:
    from nami_amp_pipeline.operations.api import Operations
    from nami_amp_pipeline.settings import Settings

    return Operations(Settings.load())


def _matching(names: Iterable[str], incomplete: str, *, before: str = "") -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(before + name) for name in names if name.startswith(incomplete)]
