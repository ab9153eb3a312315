"""Fixtures that write small run directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reports.runs import MakeRun, Recipe, list_schedule, write_run
from traces import RunLog


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a function that writes a run from a recipe's fields and opens it."""
    made: list[Path] = []

    def make(recipe: Recipe | None = None, **fields: Any) -> RunLog:
        made.append(tmp_path / f"run-{len(made)}")
        return write_run(made[-1], recipe or Recipe(**fields))

    return make


@pytest.fixture
def random_run(tmp_path: Path) -> Callable[..., RunLog]:
    """Return a function that writes a random list-scheduled run of a seed."""

    def make(seed: int = 0, jobs: int = 200, **fields: Any) -> RunLog:
        recipe = list_schedule(np.random.default_rng(seed), jobs)
        recipe = Recipe(
            **{**{k: getattr(recipe, k) for k in recipe.__dataclass_fields__}, **fields}
        )
        path = tmp_path / f"random-{seed}-{jobs}-{len(list(tmp_path.iterdir()))}"
        return write_run(path, recipe)

    return make


@pytest.fixture(scope="session")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> RunLog:
    """A random run of 120 jobs, written once."""
    path = tmp_path_factory.mktemp("one") / "run"
    return write_run(path, list_schedule(np.random.default_rng(1), 120))


@pytest.fixture(scope="session")
def one_report(one_run: RunLog) -> Path:
    """The HTML report of ``one_run``, written once."""
    from reports.html import write_report

    return write_report([one_run], one_run.path / "report.html")
