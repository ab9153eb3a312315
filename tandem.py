"""The front door: ``tandem <command>``.

Every room registers its own sub-commands in its ``cli.py`` (``add_commands(subparsers)``, each with
``set_defaults(run=handler)``); this file joins them and turns what can happen to a command into
exit codes. It knows no command by name. Rooms import their heavy parts inside the handlers, so
``tandem --help`` loads neither NumPy nor pandas (``tests/test_front_door.py``).

Exit codes: 0 done; 1 data that cannot be used, or a file that cannot be read or written; 2 usage;
130 interrupted; 141 the reader of our output went away (``tandem ... | head``).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import executor.cli
import models.cli
import policies.cli
import reports.cli
import simulator.cli
import traces.cli
from models.errors import ModelError
from traces.errors import TandemError, UsageError, did_you_mean

INTERRUPTED = 130
READER_GONE = 141


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and name what was probably meant.

    Raises :class:`traces.errors.UsageError` where argparse would print its usage and exit. Sub-
    commands are made of the same class, so this holds at every level.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation that works today is ambiguous once an option is added.
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise the message as a :class:`UsageError`."""
        raise UsageError(f"{message} (see '{self.prog} --help')")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        what = action.option_strings[-1] if action.option_strings else str(action.metavar)
        known = [str(choice) for choice in action.choices]
        self.error(f"unknown {what.lower()} {value!r}; {did_you_mean(str(value), known)}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, and refuse unknown options here, where their like is known."""
        parsed, rest = super().parse_known_args(args, namespace)
        for text in rest:
            name = text.partition("=")[0]
            if name.startswith("--"):
                near = did_you_mean(name, self._option_string_actions)
                self.error(f"unknown option {name}; {near}")
        return parsed, rest


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line, with every room's sub-commands in it."""
    parser = Parser(
        prog="tandem",
        description="A scheduling-policy lab for GPU clusters.",
        epilog="'tandem COMMAND --help' says more. Exit codes: 0 done, 1 data, 2 usage.",
    )
    # A command made of other commands (`tandem demo`) reaches them as args.tandem([...]): rooms do
    # not import each other's command lines.
    parser.set_defaults(tandem=main)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    rooms = (simulator.cli, reports.cli, policies.cli, models.cli, executor.cli, traces.cli)
    for room in rooms:
        room.add_commands(commands)
    return parser


def version() -> str:
    """Return the installed version, or ``unknown`` when the checkout is not installed."""
    from importlib import metadata

    try:
        return metadata.version("tandem-lab")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    ``argv`` is without the program's name; None takes it from the process. ``--help`` leaves by
    ``SystemExit(0)``, as argparse does. What a user can cause becomes one line on stderr; any other
    exception is a fault of ours and keeps its traceback.
    """
    try:
        with _terminating():
            return _run(argv)
    except (TandemError, ModelError) as error:  # the workload knows nothing of the other rooms
        _complain(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt as error:
        _complain(f"interrupted: {error}" if str(error) else "interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more on its way out, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except OSError as error:
        _complain(f"error: {error}")
        return TandemError.exit_code
    except UnicodeEncodeError as error:
        text = ascii(error.object[max(0, error.start - 20) : error.end + 20])
        _complain(f"error: this locale ({error.encoding}) cannot write {text}; try PYTHONUTF8=1")
        return TandemError.exit_code


def _complain(text: str) -> None:
    """Say it on stderr, in one line whatever is quoted in it."""
    print("tandem: " + " ".join(text.split("\n")), file=sys.stderr)


@contextmanager
def _terminating() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that nothing half-written is left behind."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(argv: Sequence[str] | None) -> int:
    try:
        parser = build_parser()
        args = parser.parse_args(argv)
        if args.version:
            print(f"tandem {version()}")
            return 0
        if args.command is None:
            parser.print_help(sys.stderr)
            return UsageError.exit_code
        if not hasattr(args, "run"):
            group = f"tandem {args.command}"
            raise UsageError(f"{group} needs a command of its own (see '{group} --help')")
        code: int = args.run(args)
        return code
    finally:
        if sys.stdout is not None:  # it is None where a caller closed it
            sys.stdout.flush()  # here, so that main() notices a reader who left


if __name__ == "__main__":
    sys.exit(main())
