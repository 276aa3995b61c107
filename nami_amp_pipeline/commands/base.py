"""What all commands share: settings and store when asked for, one line for each error, one object for --json."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nami_amp_pipeline import redaction
from nami_amp_pipeline.commands.streams import can_be_written, is_utf8, make_streams_usable, say
from nami_amp_pipeline.errors import OUT_OF_MEMORY, Misconfigured, Mistakes, NamiAmpError, is_out_of_memory
from nami_amp_pipeline.redaction import Redactor

if TYPE_CHECKING:
    from nami_amp_pipeline.context import Context
    from nami_amp_pipeline.operations.api import Operations
    from nami_amp_pipeline.settings import Settings

_FAILED: Mapping[str, Mapping[str, Any]] = {
    "run": {"run_id": None, "integrations": []},
    "status": {"run_id": None, "integrations": []},
}
"""What else stands in the object of a command that failed before it had anything to say."""


@dataclass
class Invocation:
    """One call of ``nami-amp``.

    Attributes:
        debug: whether the traceback of a bug is shown.
        answered: whether the object of ``--json`` is out.
        secrets: what no message may hold.
    """

    debug: bool = False
    answered: bool = False
    secrets: Redactor = field(default_factory=Redactor)
    _settings: Settings | None = None
    _operations: Operations | None = None

    @property
    def settings(self) -> Settings:
        """The settings, read on first use so that ``--help`` works with wrong ones."""
        if self._settings is None:
            from nami_amp_pipeline.settings import Settings

            self._settings = Settings.load()
            redaction.add_settings(self._settings)
        return self._settings

    @property
    def operations(self) -> Operations:
        """All that commands do, in the name of whoever runs this one."""
        if self._operations is None:
            from nami_amp_pipeline.operations.api import Operations, actor

            self._operations = Operations(self.settings, by=actor())
        return self._operations

    @contextmanager
    def context(self) -> Iterator[Context]:
        """All that the stages are given, for commands that look into their files."""
        from nami_amp_pipeline.context import Context

        context = Context.open(self.settings)
        try:
            yield context
        finally:
            context.store.close()

    def answer(self, answer: Mapping[str, Any]) -> None:
        """Prints the one object of ``--json``."""
        import orjson

        self.answered = True
        text = orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode()
        if not is_utf8(sys.stdout):
            import json

            text = json.dumps(answer, indent=2)  # any character can be escaped in JSON
        click.echo(text)

    def complain(self, message: str) -> None:
        """Says in one line on standard error what went wrong."""
        say(f"nami-amp: {self.clean(' '.join(message.split()))}")

    def clean(self, text: str) -> str:
        """A text without the secrets of this call, and those that this process has met."""
        return redaction.clean(self.secrets.clean(text))

    def close(self) -> None:
        """Closes the store."""
        if self._operations is not None:
            self._operations.close()


class CommandGroup(click.Group):
    """The command ``nami-amp``: every error becomes one line on standard error and an exit status.

    0 is done; 1 something was not delivered or not possible now; 2 an argument or a setting cannot be used; 130
    interrupted; 143 ended by SIGTERM.
    """

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "nami-amp",
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Runs the command and ends the process with its exit status."""
        arguments = list(sys.argv[1:] if args is None else args)
        make_streams_usable()
        invocation = Invocation(debug=os.environ.get("NAMI_AMP_DEBUG", "") not in ("", "0"))
        with _quiet_pipes():
            status = self._run(invocation, arguments, complete_var, extra)
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                raise
            except OSError as error:
                invocation.complain(_unwritten(error))
                status = status or 1
        sys.exit(status)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; an interrupt ends it without the empty line that click would print."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None

    def _run(
        self, invocation: Invocation, arguments: list[str], complete_var: str | None, extra: dict[str, Any]
    ) -> int:
        message, status = "", 1
        lines: list[str] = []
        try:
            result = super().main(arguments, "nami-amp", complete_var, standalone_mode=False, obj=invocation, **extra)
            return result if isinstance(result, int) else 0
        except click.exceptions.NoArgsIsHelpError as help_wanted:
            click.echo(help_wanted.format_message())
            return 0
        except (click.Abort, KeyboardInterrupt):
            return 130
        except click.UsageError as error:
            about = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
            message, status = f"{error.format_message()}{about}", 2
        except Mistakes as error:
            message, status, lines = str(error), 2, error.lines
        except Misconfigured as error:
            message, status = str(error), 2
        except (click.ClickException, NamiAmpError) as error:
            message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - the last place to make one line of it
            if isinstance(error, OSError) and not can_be_written(sys.stdout):
                invocation.answered = True
                message = _unwritten(error)
            else:
                if invocation.debug:
                    say(invocation.clean(traceback.format_exc()).rstrip())
                first = next(iter(invocation.clean(str(error)).splitlines()), "")[:200]
                message = f"this is a bug: {type(error).__name__}: {first} (NAMI_AMP_DEBUG=1 shows where)"
                message = OUT_OF_MEMORY if is_out_of_memory(error) else message
        finally:
            invocation.close()
        for line in lines or [message]:
            invocation.complain(line)
        if "--detailed-exitcode" in arguments:
            status = 1  # 2 says there that something would change
        if "--json" in arguments and not invocation.answered:
            command = next((word for word in arguments if not word.startswith("-")), "")
            mistakes = {"mistakes": [invocation.clean(line) for line in lines]} if lines else {}
            error_text = invocation.clean(" ".join(message.split()))
            invocation.answer({**_FAILED.get(command, {}), "error": error_text, **mistakes})
        return status


@contextmanager
def _quiet_pipes() -> Iterator[None]:
    """Ends quietly when nobody reads what is printed any more."""
    try:
        yield
    except BrokenPipeError:
        # Python flushes standard output once more at its end, which would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _unwritten(error: OSError) -> str:
    """What to say where nobody can read the output; what is still in its buffer goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return f"cannot write to standard output: {error.strerror or 'it is closed'}"


json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of tables."
)


def integration_keys(names: Sequence[str], *, in_two_words: bool = False) -> list[str]:
    """The integrations that arguments name as ``APP/NAME``.

    Args:
        names: as given.
        in_two_words: whether ``APP NAME`` will do, as ``integrations add`` takes it.

    Raises:
        Misconfigured: one is not of that form.
    """
    if in_two_words and len(names) == 2 and not any("/" in name for name in names):
        return ["/".join(names)]
    for name in names:
        if name.count("/") != 1:
            raise Misconfigured(f"{name!r} is not an integration: write APP/NAME, as in 'nami-amp integrations list'")
    return list(names)
