"""The `llamamath` command: registers one file per command, and turns every ending into an exit code.

0 fits, done; 1 does not fit, or a check failed; 2 usage or configuration; 3 missing dependency, access or hardware; 4 training or
evaluation failed; 130 interrupted. No traceback reaches a user unless LLAMAMATH_DEBUG=1 asks for it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from llamamath import __version__
from llamamath.cli.accuracy import accuracy
from llamamath.cli.doctor import doctor
from llamamath.cli.fit import fit
from llamamath.cli.plan import plan
from llamamath.cli.profiles import profiles
from llamamath.cli.trace import trace
from llamamath.errors import LlamamathError, UnavailableError, UsageError

INTERRUPTED = 130
UNWRITABLE = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
"""What writing to a full or broken disk fails with."""

app = typer.Typer(
    name="llamamath",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (plan, fit, profiles, trace, doctor, accuracy):
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llamamath {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")] = False,
) -> None:
    """What can be trained on this GPU, how, and why: exact about memory, honest about the rest."""


class InternalError(LlamamathError):
    """Our own mistake."""


def main() -> NoReturn:
    """Entry point of the installed command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code."""
    json_wanted = "--json" in arguments
    try:
        _write_anything()
        code = app(args=list(arguments), prog_name="llamamath", standalone_mode=False)
        _flush()
        return code if isinstance(code, int) else 0
    except LlamamathError as error:
        return _report(error, json_wanted)
    except typer.TyperException as error:
        return _usage(error, arguments, json_wanted)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in UNWRITABLE:
            return _report(_unwritable(error), False)
        if os.environ.get("LLAMAMATH_DEBUG"):
            raise
        return _report(_internal(error), json_wanted)


def _write_anything() -> None:
    """A character that the output's encoding lacks is replaced, rather than ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _flush() -> None:
    """Write out what is buffered while an error can still be reported."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritable(error) from error


def _unwritable(error: OSError) -> UnavailableError:
    """Standard output takes no more: what is left of it goes nowhere."""
    _discard_output()
    return UnavailableError(f"cannot write to standard output: {error.strerror or error}", "is the disk full?")


def _report(error: LlamamathError, json_wanted: bool) -> int:
    from llamamath.cli.output import print_error, print_json
    from llamamath.planner.contract import error_document

    try:
        if json_wanted:
            print_json(error_document(error))
            _flush()
    except BrokenPipeError:
        _reader_left()
    except UnavailableError:
        pass  # standard output is gone; standard error still says what was wrong
    print_error(error)
    return error.exit_code


def _usage(error: typer.TyperException, arguments: Sequence[str], json_wanted: bool) -> int:
    """typer's own complaints: an unknown option, a missing value. A command without arguments gets its help."""
    message = error.format_message()
    if not arguments or message.lstrip().startswith("Usage:"):
        typer.echo(message)
        return 2
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    known = {registered.callback.__name__ for registered in app.registered_commands if registered.callback}
    name = f"llamamath {command}" if command in known else "llamamath"
    return _report(UsageError(message, f"`{name} --help` lists what is accepted"), json_wanted)


def _internal(error: Exception) -> InternalError:
    what = " ".join(str(error).split())
    message = f"internal error: {type(error).__name__}: {what} (llamamath {__version__})"
    return InternalError(message, "please report it with the command line; LLAMAMATH_DEBUG=1 shows where it happened")


def _reader_left() -> int:
    """Whoever read our output (`| head`) has enough: end quietly."""
    _discard_output()
    return 1


def _discard_output() -> None:
    """What is still buffered goes nowhere, so that Python's own flush at exit has nothing to complain about."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    main()
