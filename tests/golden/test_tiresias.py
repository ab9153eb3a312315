"""Per-job results of Tiresias' published simulator, to the second, for all of its 60 jobs.

Four nodes of four GPUs, count-only placement, preemption free of charge. Its ``fifo`` is strict
head of line; its ``shortest`` is preemptive by remaining time and passes over what does not fit.
Start, end, completion time, time pending and the number of preemptions are compared.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from simulator import simulate
from traces import load

COLUMNS = {
    "num_gpu": "num_gpus",
    "submit_time": "submit_s",
    "start_time": "start_s",
    "end_time": "finish_s",
    "jct": "jct_s",
    "pending_time": "queueing_s",
    "preempt": "preemptions",
}


@pytest.mark.parametrize(
    ("policy", "mean_jct_s", "makespan_s", "preemptions"),
    [("fifo", 200.816667, 3335.0, 0), ("srtf", 192.116667, 3271.0, 4)],
)
def test_every_job(
    shared_data: Path,
    shared_golden: Path,
    policy: str,
    mean_jct_s: float,
    makespan_s: float,
    preemptions: int,
) -> None:
    workload = load(shared_data / "tiresias" / "60_job.csv")
    published = pd.read_csv(
        shared_golden / f"tiresias_60_n4g4_{policy}.csv", dtype={"job_id": str}
    ).set_index("job_id")
    ours = simulate(workload, "4x4:gpu", policy=policy).jobs.set_index("job_id")
    assert len(ours) == len(published) == 60
    ours = ours.loc[published.index]
    for theirs, name in COLUMNS.items():
        wrong = published[theirs].astype(float) != ours[name].astype(float)
        assert not wrong.any(), f"{name}: {list(published.index[wrong])}"
    assert round(float(ours["jct_s"].mean()), 6) == mean_jct_s
    assert float(ours["finish_s"].max()) == makespan_s
    assert int(ours["preemptions"].sum()) == preemptions
