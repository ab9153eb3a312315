"""A run as a trace: its option, and what a writer that was killed leaves beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from policies.model import Model
from simulator import simulate
from traces import Profile, UsageError, Workload, load
from traces.profile import ModelProfile
from traces.runwriter import remove_abandoned

JOB = {
    "job_id": "a",
    "submit_s": 0.0,
    "num_gpus": 2,
    "num_workers": 2,
    "min_gpus": 1,
    "max_gpus": 2,
    "model": "net",
    "batch_size": 1,
    "total_steps": 10.0,
}


def machine(micro_s: float) -> Model:
    return Model(
        profile=Profile(
            models={"net": ModelProfile(microbatch_s={1: {"gpu": micro_s}})}, origin="analytic"
        )
    )


def test_a_run_on_a_slower_machine_takes_longer_if_its_steps_are_the_work(tmp_path: Path) -> None:
    first = simulate(Workload.from_jobs([JOB]), "1x2:gpu", model=machine(1.0), out=tmp_path / "run")
    assert first.jobs["finish_s"].tolist() == [10.0]
    took = {}
    for durations in ("recorded", "from-steps"):
        again = load(tmp_path / "run", options={"durations": durations})
        took[durations] = simulate(again, "1x2:gpu", model=machine(3.0)).jobs["finish_s"].tolist()
    # Recorded, 10 s are the time that the job needs where it was asked for: at rate 1.
    assert took == {"recorded": [10.0], "from-steps": [30.0]}
    with pytest.raises(UsageError, match="durations=stepwise"):
        load(tmp_path / "run", options={"durations": "stepwise"})


def test_only_what_dead_writers_of_this_run_left_is_removed(tmp_path: Path) -> None:
    own, others = f".run.{os.getpid()}.tmp", (".run.two.7.tmp", ".run.x.tmp", "run", ".run.7.part")
    for name in (own, *others, ".run.7.tmp", ".run.123456.tmp"):
        (tmp_path / name).mkdir()
    remove_abandoned(tmp_path / "run")
    assert {p.name for p in tmp_path.iterdir()} == {own, *others}
