"""Shortest first by hand, on jobs of the kind PAI's simulator counts: many small, some gangs.

PAI's rules: not preemptive, a job that does not fit is passed over, gangs all or nothing, ties by
job id. One node of four GPUs; every line of a table is drawn below it.
"""

from __future__ import annotations

import pytest

from simulator import simulate
from traces import Workload

# id: submit, duration, GPUs
JOBS = {
    "a": (0, 6, 3),
    "b": (1, 9, 2),
    "c": (1, 2, 4),
    "d": (2, 5, 1),
    "e": (3, 5, 2),
    "f": (3, 1, 1),
}

# by time, misfits passed over:      0    5    10   15   20   25
#   c c c c need the whole node      aaaaaa
#   d starts at 2 beside a           aaaaaa
#   f is shorter than d, but later   aaaaaa
#   at 6 a ends: c wants 4, 3 free   ..ddddd
#   f (1), then e (5) start at 6           f
#   at 7 d and f end: 2 free, b            eeeee
#   at 11 e ends: 2 free, c waits           bbbbbbbbb
#   at 16 b ends: c                                  cc
PASSED_OVER = {"a": (0, 6), "b": (7, 16), "c": (16, 18), "d": (2, 7), "e": (6, 11), "f": (6, 7)}

# the first in order blocks: at 1 it is c (2 s), so nobody starts before c has; at 3 it is f (1 s),
# which fits beside a (3 of 4); c needs all four and waits for a until 6; then d and e (5 s each,
# d first), and b (9 s) needs two of the last one: it waits until both have ended at 13.
BLOCKING = {"a": (0, 6), "f": (3, 4), "c": (6, 8), "d": (8, 13), "e": (8, 13), "b": (13, 22)}

# by GPU-time: f 1, d 5, c 8, e 10, a 18, b 18. At 6 f and e start (c wants 4, d holds 1); at 7 d
# and f end; e holds 2 until 11, b (the only one that fits) takes the other two.
GPU_TIME = PASSED_OVER


@pytest.mark.parametrize(
    ("policy", "table"),
    [("sjf", PASSED_OVER), ("sjf:blocks=true", BLOCKING), ("sjf:by=gpu-time", GPU_TIME)],
)
def test_drawn(policy: str, table: dict[str, tuple[int, int]]) -> None:
    workload = Workload.from_jobs(
        [
            {"job_id": job_id, "submit_s": s, "duration_s": d, "num_gpus": g}
            for job_id, (s, d, g) in JOBS.items()
        ]
    )
    jobs = simulate(workload, "1x4", policy=policy).jobs.set_index("job_id")
    found = {j: (row["start_s"], row["finish_s"]) for j, row in jobs.iterrows()}
    assert found == table
