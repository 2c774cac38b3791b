"""How a run of the program ends: the exit status, and one line on standard error where something went wrong."""

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from typing import Any, Final

import rich_click as click

from shardstream.cli.report import console_of, printable
from shardstream.errors import ShardstreamError

_INTERRUPTED: Final = 130  # what a shell says of a process that Ctrl-C ended


def examples(*commands: str) -> str:
    """What stands at the end of a verb's help."""
    return "\n\n".join(["Examples:", *(f"$ {command}" for command in commands)])


class RefusedData(click.ClickException):
    """Data is bad, or cannot be had or kept."""

    exit_code = 1


class Interrupted(click.ClickException):
    """Ctrl-C; the message says how to go on."""

    exit_code = _INTERRUPTED


@contextlib.contextmanager
def wrong_use() -> Iterator[None]:
    """What fails in here fails for the way the program was called: its arguments, or what they name."""
    try:
        yield
    except ShardstreamError:
        raise
    except OSError as error:
        raise click.UsageError(_described(error)) from error
    except (ImportError, IndexError, TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error


@contextlib.contextmanager
def refused_data(where: str) -> Iterator[None]:
    """What fails in here fails for the data, which lies ``where``."""
    try:
        yield
    except ShardstreamError:
        raise
    except (TypeError, ValueError) as error:
        raise ShardstreamError(f"{where}: {error}") from error


class Verb(click.RichCommand):
    """One verb."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; what the library or the system finds wrong becomes an error of the command line."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:  # the library's message says what to install
            raise click.UsageError(str(error)) from error
        except BrokenPipeError:  # whoever read has seen enough: rich-click ends the program quietly
            raise
        except (ShardstreamError, OSError) as error:
            raise RefusedData(self._in_options(_described(error))) from error

    def _in_options(self, message: str) -> str:
        """The library speaks of its arguments, the user of the verb's options.

        ``resume=True`` is ``--resume``, ``on_error='skip'`` is ``--on-error skip``.
        """
        for parameter in self.params:
            message = re.sub(rf"\b{parameter.name}='(\w+)'", rf"{parameter.opts[0]} \1", message)
            message = re.sub(rf"\b{parameter.name}=True\b", parameter.opts[0], message)
        return message


class Verbs(click.RichGroup):
    """A group of verbs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order in which they were added: that of the work."""
        del ctx
        return list(self.commands)


class Program(Verbs):
    """The group of all verbs."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run, and end the process with the exit status."""
        options["standalone_mode"] = False
        if isinstance(sys.stdout, io.TextIOWrapper):  # it is None where it was closed
            sys.stdout.reconfigure(errors="backslashreplace")  # text of any script, on any terminal
        try:
            status = super().main(*args, **options)
        except click.ClickException as error:
            status = _show(error)
        except click.Abort:
            status = _show(Interrupted("interrupted; nothing was changed, the same command starts again"))
        except OSError as error:  # a full disk; everything that prints flushes
            status = _show(RefusedData(_described(error)))
        sys.exit(status)


def _described(error: Exception) -> str:
    """A system's error without its number; any other as it is."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _show(error: click.ClickException) -> int:
    from rich.text import Text  # noqa: PLC0415 - most runs end well

    console = console_of(sys.stderr)
    text = Text.assemble(("Error: ", "bold red"), (printable(error.format_message()), "red"))
    console.print(text, soft_wrap=True)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        console.print(f"Try: {error.ctx.command_path} --help", style="dim", soft_wrap=True)
    return error.exit_code
