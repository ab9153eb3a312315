"""``docs/cli.md`` names every command and every function, and its commands run as they stand."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tandem
from tests.test_docs import commands

# The first needs a network, the third what it brings; the demo, a profile and an execution take a
# while, a server does not end.
NOT_RUN = (
    *("traces fetch tiresias", "demo", "run data/60_job.csv", "serve", "reproduce", "profile"),
    *("execute", "validate", "fidelity"),
)


def leaves(parser: argparse.ArgumentParser, path: str = "") -> Iterator[str]:
    """Yield the names of all commands that do something."""
    subs = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not subs:
        yield path
    for action in subs:
        for name, sub in action.choices.items():
            yield from leaves(sub, f"{path} {name}".strip())


@pytest.fixture(scope="module")
def page() -> str:
    root = Path(__file__).resolve().parent.parent
    return (root / "docs" / "cli.md").read_text(encoding="utf-8")


def test_every_command_is_in_a_table_and_has_an_example(page: str) -> None:
    shown = re.findall(r"^\| `([a-z -]+)` \|", page, re.MULTILINE)
    examples = [" ".join(argv) for _, argv in commands(page)]
    for name in leaves(tandem.build_parser()):
        assert name in shown
        assert any(line.startswith(name) for line in examples), name
    assert set(shown) - set(leaves(tandem.build_parser())) == {"policies check"}


def test_every_function_is_there(page: str) -> None:
    for name in re.findall(
        r"\| `((?:traces|policies|simulator|reports|models|executor)\.[a-z_.]+)` \|", page
    ):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
        assert callable(getattr(importlib.import_module(module), attribute)), name


def test_the_commands_run_in_this_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = 0
    for _, argv in commands(page):
        if " ".join(argv).startswith(NOT_RUN):
            continue
        assert tandem.main(argv) == 0, argv
        ran += 1
        said = capsys.readouterr()
        assert said.out
        assert not said.err
    assert ran >= 12
    assert (tmp_path / "both.html").is_file()
