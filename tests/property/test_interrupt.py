"""A run that is interrupted leaves a log that can be read and says that it is partial."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from traces import RunLog

JOBS = 400_000  # many times longer than the test waits


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "long.csv"
    ranks = np.arange(JOBS)
    pd.DataFrame(
        {
            "job_id": [f"j{i}" for i in ranks],
            "submit_s": ranks * 10.0,
            "duration_s": 20.0 + ranks % 31,
            "num_gpus": 1 + ranks % 3,
        }
    ).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_signal_leaves(
    trace: Path, tmp_path: Path, repo: Path, number: signal.Signals
) -> None:
    out = tmp_path / "runs" / "a"
    words = ["run", str(trace), "--cluster", "1x8", "--policy", "srtf", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, str(repo / "tandem.py"), *words, "--no-report", "--quiet"],
        cwd=repo,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        # Its temporary directory is there once the run has begun.
        while not (out.parent.is_dir() and any(out.parent.iterdir())):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.0)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert [p.name for p in out.parent.iterdir()] == ["a"]
    log = RunLog.open(out)
    assert log.partial
    assert log.record["status"] == "partial"
    jobs = log.table("jobs")
    status = jobs["status"].value_counts()
    counts = log.record["counts"]
    assert len(jobs) == JOBS
    assert 0 < status["finished"] == counts["finished"] < JOBS
    assert counts["submitted"] == status["finished"] + status["running"] + status["waiting"]
    events = log.table("events")
    assert (events["kind"] == "finish").sum() == counts["finished"]
    assert events["time_s"].is_monotonic_increasing
    stays = log.table("allocations")
    assert (stays["end_reason"] == "open").sum() >= status["running"]
    assert (stays["end_s"] <= log.record["span"]["end_s"]).all()
