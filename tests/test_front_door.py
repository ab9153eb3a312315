"""The front door: it answers at once, and everything a user can cause is one line and a code."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import tandem
from traces.errors import DataError, UsageError

ROOMS = ("traces", "policies", "simulator", "models", "executor", "reports")


def run_python(repo: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], cwd=repo, capture_output=True, text=True, check=False
    )


def loaded_by(repo: Path, code: str) -> set[str]:
    """Top-level modules in ``sys.modules`` after ``code`` ran in a fresh interpreter."""
    names = "json.dumps(sorted({m.split('.')[0] for m in sys.modules}))"
    done = run_python(repo, "-c", f"import json, sys\n{code}\nprint({names})")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_loads_the_standard_library_and_us_alone(repo: Path) -> None:
    # What decides how fast `tandem --help` answers, without a clock: what it imports.
    bare = loaded_by(repo, "")
    helped = loaded_by(repo, "import tandem; tandem.build_parser().format_help()")
    assert helped - bare - set(sys.stdlib_module_names) <= {"tandem", *ROOMS}


def test_importing_a_room_loads_no_table_library(repo: Path) -> None:
    rooms = "\n".join(f"import {room}" for room in ROOMS)
    assert not loaded_by(repo, rooms) & {"numpy", "pandas", "pyarrow", "scipy", "matplotlib"}


@pytest.mark.parametrize("room", ROOMS)
def test_every_export_of_a_room_is_there_and_no_module_hides_it(repo: Path, room: str) -> None:
    package = importlib.import_module(room)
    beside = {path.stem for path in (repo / room).glob("*.py")}
    beside |= {path.parent.name for path in (repo / room).glob("*/__init__.py")}
    for name in getattr(package, "__all__", []):
        value = getattr(package, name)
        if name in beside:
            assert isinstance(value, ModuleType), f"{room}.{name}: module {name} would hide it"
    with pytest.raises(AttributeError, match="no_such_export"):
        _ = package.no_such_export


def test_python_dash_m_and_help(repo: Path) -> None:
    done = run_python(repo, "-m", "tandem", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: tandem ")


def test_version_is_the_one_of_pyproject(
    repo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (repo / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)["project"]["version"]
    monkeypatch.setattr("importlib.metadata.version", {"tandem-lab": declared}.__getitem__)
    assert tandem.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tandem {declared}\n"


def test_no_command_prints_help_and_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "commands:" in captured.err


def test_every_room_that_has_commands_is_asked_for_them(repo: Path) -> None:
    offered = {f"{room}.cli" for room in ROOMS if (repo / room / "cli.py").is_file()}
    asked = {f"{room}.cli" for room in ROOMS if hasattr(getattr(tandem, room, None), "cli")}
    assert offered == asked, "tandem.build_parser() joins the commands of every room's cli.py"


def parser_with(handler: Callable[[argparse.Namespace], int]) -> Callable[[], tandem.Parser]:
    """A front door with one room: commands ``run`` (the handler) and ``replay``."""

    def build() -> tandem.Parser:
        parser = tandem.Parser(prog="tandem")
        parser.add_argument("--version", action="store_true")
        commands = parser.add_subparsers(metavar="COMMAND", dest="command")
        run = commands.add_parser("run")
        run.add_argument("--policy", choices=["fifo", "tiresias"])
        run.add_argument("--seed", type=int)
        run.add_argument("trace", nargs="?")
        run.set_defaults(run=handler)
        commands.add_parser("replay").set_defaults(run=handler)
        commands.add_parser("traces").add_subparsers(metavar="COMMAND").add_parser("info")
        return parser

    return build


def interrupted(args: argparse.Namespace) -> int:
    raise KeyboardInterrupt


def terminated(args: argparse.Namespace) -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    return 0


def interrupted_with_something_left(args: argparse.Namespace) -> int:
    raise KeyboardInterrupt("runs/a holds what was done by then")


def several_lines(args: argparse.Namespace) -> int:
    raise DataError("one line\nand another", file="a.parquet")


def no_such_letter(args: argparse.Namespace) -> int:
    "é".encode("ascii")
    return 0


def bad_data(args: argparse.Namespace) -> int:
    raise DataError("not a number", file="a.csv", row=3, column="gpus", value="x", expected="1")


def bad_usage(args: argparse.Namespace) -> int:
    raise UsageError("no such policy")


def no_file(args: argparse.Namespace) -> int:
    raise FileNotFoundError(2, "No such file or directory", "a.csv")


@pytest.mark.parametrize(
    ("handler", "code", "stderr"),
    [
        (lambda args: 0, 0, ""),
        (lambda args: 1, 1, ""),
        (interrupted, 130, "tandem: interrupted\n"),
        (terminated, 130, "tandem: interrupted\n"),
        (
            interrupted_with_something_left,
            130,
            "tandem: interrupted: runs/a holds what was done by then\n",
        ),
        (several_lines, 1, "tandem: error: a.parquet: one line and another\n"),
        (
            no_such_letter,
            1,
            "tandem: error: this locale (ascii) cannot write '\\xe9'; try PYTHONUTF8=1\n",
        ),
        (
            bad_data,
            1,
            "tandem: error: a.csv, row 3, column 'gpus': not a number (found 'x'); expected 1\n",
        ),
        (bad_usage, 2, "tandem: error: no such policy\n"),
        (no_file, 1, "tandem: error: [Errno 2] No such file or directory: 'a.csv'\n"),
    ],
)
def test_what_happens_becomes_one_line_and_a_code(
    handler: Callable[[argparse.Namespace], int],
    code: int,
    stderr: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tandem, "build_parser", parser_with(handler))
    assert tandem.main(["run"]) == code
    assert capsys.readouterr().err == stderr
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_closed_stdout_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tandem, "build_parser", parser_with(lambda args: 0))
    monkeypatch.setattr("sys.stdout", None)
    assert tandem.main(["run"]) == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["rnu"], "unknown command 'rnu'; did you mean 'run'?"),
        (["run", "--polcy", "fifo"], "unknown option --polcy; did you mean '--policy'?"),
        (["run", "--polcy=fifo"], "unknown option --polcy; did you mean '--policy'?"),
        (["run", "--policy", "tiresais"], "unknown --policy 'tiresais'; did you mean 'tiresias'?"),
        (["run", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["traces"], "tandem traces needs a command of its own (see 'tandem traces --help')"),
        (["traces", "inof"], "unknown command 'inof'; did you mean 'info'?"),
        (["run", "--seed"], "argument --seed: expected one argument"),
        (["run", "a", "b"], "unrecognized arguments: b"),
        (["run", "--pol", "fifo"], "unknown option --pol; did you mean '--policy'"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_helps(
    argv: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tandem, "build_parser", parser_with(lambda args: 0))
    assert tandem.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"tandem: error: {said}")
    assert err.count("\n") == 1


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: argparse.Namespace) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(tandem, "build_parser", parser_with(broken))
    with pytest.raises(ZeroDivisionError):
        tandem.main(["run"])


def test_a_reader_who_leaves_is_no_error(repo: Path) -> None:
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-m", "tandem", "--help"],
        cwd=repo,
        env=buffered,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # before it can have written anything: it still imports
        err = process.stderr.read()
        assert process.wait(60) == 141
    assert err == b""
