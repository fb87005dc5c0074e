"""The entry point: verbs, and how each kind of end becomes an exit code.

0 done; 1 a stated requirement was not met; 2 the input is at fault; 70 a mistake of ours; 130 interrupted; 141 nobody
reads the output any more (as when `head` has seen enough).
"""

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from gossamer.cli import (
    accelerator,
    apply,
    compare,
    detect,
    estimate,
    evaluate,
    export,
    generate,
    inspect,
    optimize,
    report,
    serve,
)
from gossamer.core.errors import GossamerError

INTERNAL = 70
INTERRUPTED = 130
UNREAD = 141
_PLACE_AT_FAULT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}

app = typer.Typer(
    help="Make multimodal foundation models small and fast on a given device, and prove it.",
    epilog="Example: gossamer optimize tiny-vlm --ratio 0.25 --out runs/first",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"max_content_width": 110},
)
for _verb in (inspect, estimate, evaluate, generate, detect, serve, optimize, apply, compare, export, report):
    app.command(_verb.__name__.rpartition(".")[2], epilog=f"Example: {_verb.EXAMPLE}")(_verb.command)
app.add_typer(accelerator.app, name="accelerator")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"gossamer {version('gossamer')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code; messages about failures go to standard error."""
    try:
        code = app(list(arguments) or ["--help"], prog_name="gossamer", standalone_mode=False) or 0
    except GossamerError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _fail(_usage(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (BrokenPipeError, SystemExit):  # the reader of our output went away; typer turns that into an exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return UNREAD
    except Exception as error:
        fault = _place_at_fault(error)
        return _fail(fault, 2) if fault else _internal(error)
    if code == INTERRUPTED:
        print("interrupted: the same command resumes, finished steps in its run folder are kept", file=sys.stderr)
    return code


def _place_at_fault(error: Exception) -> str | None:
    """The sentence for a failure of the place, such as a full disk; safetensors hides its number in the text."""
    hidden = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(hidden[1]) if hidden else None
    if number not in _PLACE_AT_FAULT:
        return None
    place = getattr(error, "filename", None) or "the place given"
    return f"cannot use {place}: {os.strerror(number)}; choose a readable or writable place with free space"


def _usage(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "gossamer"
    message = error.format_message().replace("Value error, ", "").rstrip(".?")
    return f"{message}; see '{command} --help'"


def _internal(error: Exception) -> int:
    if os.environ.get("GOSSAMER_DEBUG"):
        traceback.print_exception(error)
    what = f"internal error: {type(error).__name__}: {error}"
    return _fail(f"{what}; please report it with the trace that GOSSAMER_DEBUG=1 shows", INTERNAL)


def _fail(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """The `gossamer` program."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(sys.argv[1:]))
