"""Outages: where they come from, and what they do to jobs, computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Clock, Driver, StarvationError, make_placement, make_policy
from policies.errors import FutileError
from policies.model import Costs, Model
from simulator.cluster import Checkpoints, SimulatedCluster
from simulator.failures import Change, Daily, Mtbf, OutageLog, Source, read_outage_log
from simulator.outages import Outages
from tests.memorylog import MemoryLog
from traces import ClusterSpec, DataError, UsageError, Workload
from traces.cluster import Node


def run(
    jobs: Sequence[dict[str, Any]],
    cluster: ClusterSpec | str,
    sources: Sequence[Source],
    *,
    policy: str = "fifo",
    checkpoints: Checkpoints | None = None,
    model: Model | None = None,
    seed: int = 0,
) -> tuple[Driver, MemoryLog, SimulatedCluster]:
    spec = ClusterSpec.parse(cluster) if isinstance(cluster, str) else cluster
    clock = Clock()
    backend = SimulatedCluster(clock, spec, model, checkpoints)
    log = MemoryLog()
    driver = Driver(
        clock=clock,
        workload=Workload.from_jobs(list(jobs)),
        spec=spec,
        policy=make_policy(policy),
        placement=make_placement("count"),
        backend=backend,
        log=log,
        model=backend.model,
    )
    Outages(backend, sources, np.random.default_rng(seed))
    driver.run()
    return driver, log, backend


def job(name: str, submit: float, duration: float, gpus: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "job_id": name,
        "submit_s": submit,
        "duration_s": duration,
        "num_gpus": gpus,
        **more,
    }


def log_of(tmp_path: Path, text: str, cluster: str | ClusterSpec = "2x2:a") -> OutageLog:
    file = tmp_path / "outages.csv"
    file.write_text("time_s,node,gpus,event\n" + text, encoding="utf-8")
    return read_outage_log(
        file, ClusterSpec.parse(cluster) if isinstance(cluster, str) else cluster
    )


# One GPU, one job of 100 s, checkpoints every 30 s of work, failure from 70 to 90:
#
#   0 ------------- 70 ...... 90 ---------- 130
#   work 0 to 70    back to   work 60 to 100
#                   60: 10 s lost
def test_a_failure_costs_what_came_after_the_last_checkpoint(tmp_path: Path) -> None:
    log = log_of(tmp_path, "70,a-0000,0,down\n90,a-0000,0,up\n", "1x1:a")
    driver, memory, backend = run(
        [job("j", 0, 100)], "1x1:a", [log], checkpoints=Checkpoints(every_s=30)
    )
    out = driver.outcomes
    assert out.finish_s[0] == 130.0
    assert out.lost_gpu_s[0] == 10.0
    assert out.failures[0] == 1
    assert out.queueing_s[0] == 20.0
    assert out.service_gpu_s[0] == 70.0 + 40.0
    assert [(t, kind) for t, kind, _ in memory.events] == [
        (0.0, "submit"),
        (0.0, "start"),
        (70.0, "fail"),
        (90.0, "start"),
        (130.0, "finish"),
    ]
    assert [(t, k, n, m) for t, k, n, m, _ in memory.devices] == [
        (70.0, "device_lost", 0, 1),
        (90.0, "device_returned", 0, 1),
    ]
    assert backend.returning == 0


# A gang of 4 over two nodes; GPU 1 of node 1 fails from 40 to 60. Three GPUs are left, so the gang
# waits, and a gang of 2 submitted later runs meanwhile.
def test_a_lost_gpu_stops_the_whole_gang(tmp_path: Path) -> None:
    log = log_of(tmp_path, "40,a-0001,1,down\n60,a-0001,1,up\n")
    driver, memory, _ = run(
        [job("big", 0, 100, 4), job("small", 10, 5, 2)], "2x2:a", [log], policy="best-effort"
    )
    # small starts at 40 on what is left, ends at 45; big restarts from nothing at 60.
    assert driver.outcomes.finish_s[1] == 45.0
    assert driver.outcomes.finish_s[0] == 160.0
    assert driver.outcomes.lost_gpu_s[0] == 4 * 40.0
    assert (40.0, "fail", 0) in memory.events


def test_sharers_of_a_gpu_fail_together(tmp_path: Path) -> None:
    log = log_of(tmp_path, "10,a-0000,0,down\n20,a-0000,0,up\n", "1x2:a")
    jobs = [job(f"j{i}", 0, 30, gpu_milli=400) for i in range(2)] + [job("whole", 0, 30)]
    driver, _, _ = run(jobs, "1x2:a", [log], policy="best-effort")
    assert list(driver.outcomes.failures) == [1, 1, 0]
    assert list(driver.outcomes.finish_s) == [50.0, 50.0, 30.0]
    assert driver.view.free.pools[0].free == 2
    assert driver.view.free.pools[0].capacity == 2


# GPU 0 is out from 10 to 40, its machine from 20 to 30: the GPU is back at 40, the other at 30.
def test_outages_overlap(tmp_path: Path) -> None:
    log = log_of(
        tmp_path,
        "10,a-0000,0,down\n20,a-0000,,down\n30,a-0000,,up\n40,a-0000,0,up\n",
        "1x2:a",
    )
    driver, memory, backend = run([job("j", 50, 1, 2)], "1x2:a", [log])
    assert [(t, k, m) for t, k, _, m, _ in memory.devices] == [
        (10.0, "device_lost", 0b01),
        (20.0, "device_lost", 0b10),
        (30.0, "device_returned", 0b10),
        (40.0, "device_returned", 0b01),
    ]
    assert driver.outcomes.finish_s[0] == 51.0
    assert backend.returning == 0


def test_a_machine_takes_its_cpu_jobs_along() -> None:
    spec = ClusterSpec(
        tuple(Node(name=f"n{i}", gpu_type="cpu", num_gpus=0, cpu_milli=1000) for i in range(2))
    )
    log = OutageLog(
        (
            Change(time_s=5.0, node=0, mask=0, down=True, detail="test"),
            Change(time_s=8.0, node=0, mask=0, down=False, detail="test"),
        )
    )
    jobs = [job("a", 0, 10, 0, cpu_milli=1000), job("b", 0, 10, 0, cpu_milli=1000)]
    driver, memory, _ = run(jobs, spec, [log])
    assert list(driver.outcomes.failures) == [1, 0]
    assert list(driver.outcomes.finish_s) == [18.0, 10.0]
    assert [(t, k, n, m) for t, k, n, m, _ in memory.devices] == [
        (5.0, "device_lost", 0, 0),
        (8.0, "device_returned", 0, 0),
    ]


def test_a_queue_waits_for_repairs_and_not_for_what_is_gone(tmp_path: Path) -> None:
    back = log_of(tmp_path, "0,a-0000,,down\n100,a-0000,,up\n", "1x2:a")
    driver, _, _ = run([job("j", 1, 1, 2)], "1x2:a", [back])
    assert driver.outcomes.finish_s[0] == 101.0
    gone = log_of(tmp_path, "0,a-0000,1,down\n", "1x2:a")
    with pytest.raises(StarvationError, match="starves 1 waiting"):
        run([job("j", 1, 1, 2)], "1x2:a", [gone])
    # GPU 1 comes back once, and then goes for good while its machine is under repair.
    twice = log_of(
        tmp_path,
        "0,a-0000,1,down\n10,a-0000,1,up\n20,a-0000,,down\n21,a-0000,1,down\n30,a-0000,,up\n",
        "1x2:a",
    )
    with pytest.raises(StarvationError) as stuck:
        run([job("j", 15, 100, 2)], "1x2:a", [twice])
    assert stuck.value.time_s == 30.0


def test_what_a_preemption_saved_survives_a_failure(tmp_path: Path) -> None:
    # Under SRTF the long job is preempted at 50 (saved: 50 s of work), restarts at 60 and fails
    # at 70 with 60 s done; the period of 40 s holds 40, the saved checkpoint 50.
    log = log_of(tmp_path, "70,a-0000,0,down\n75,a-0000,0,up\n", "1x1:a")
    driver, _, _ = run(
        [job("long", 0, 100), job("short", 50, 10)],
        "1x1:a",
        [log],
        policy="srtf",
        checkpoints=Checkpoints(every_s=40),
    )
    assert driver.outcomes.lost_gpu_s[0] == 10.0
    assert driver.outcomes.finish_s[0] == 75.0 + 50.0


def test_a_restart_pays_its_costs_again(tmp_path: Path) -> None:
    log = log_of(tmp_path, "50,a-0000,0,down\n60,a-0000,0,up\n", "1x1:a")
    driver, _, _ = run(
        [job("j", 0, 100)],
        "1x1:a",
        [log],
        checkpoints=Checkpoints(every_s=10),
        model=Model(costs=Costs(start_s=5, restore_s=3)),
    )
    # Work from 5 to 50: 45 done, 40 kept; from 60 + 5 + 3 the other 60.
    assert driver.outcomes.finish_s[0] == 128.0
    assert driver.outcomes.lost_gpu_s[0] == 5.0
    assert driver.outcomes.overhead_gpu_s[0] == 13.0


def test_a_job_that_can_never_finish_is_found_out() -> None:
    with pytest.raises(FutileError, match=r"job j .* 1000 times without keeping any new work"):
        run([job("j", 0, 1e6)], "1x1:a", [Mtbf(node_mtbf_s=100.0, node_mttr_s=1.0)])
    with pytest.raises(FutileError):  # what it kept at first does not help for ever
        run(
            [job("j", 0, 1e6)],
            "1x1:a",
            [Mtbf(node_mtbf_s=100.0, node_mttr_s=1.0)],
            checkpoints=Checkpoints(every_s=1e4),
        )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("x,a-0000,0,down\n", "row 2, column 'time_s': not a time"),
        ("inf,a-0000,0,down\n", "row 2, column 'time_s': not a time"),
        ("1,a-000,0,down\n", "row 2, column 'node': no such node"),
        ("1,a-0000,2,down\n", "row 2, column 'gpus': no such GPU"),
        ("1,a-0000,0;0,down\n", "row 2, column 'gpus': a GPU is there twice"),
        ("1,a-0000,-1,down\n", "row 2, column 'gpus': no such GPU"),
        ("1,a-0000,0,broken\n", "row 2, column 'event': not an event"),
        ("1,a-0000\n", "row 2, column 'event': not an event"),
        ("1,a-0000,0,down\n2,a-0000,1,up\n", "row 3, column 'gpus': comes up without"),
        ("1,a-0000,,down\n2,a-0000,1,up\n", "row 3, column 'gpus': comes up without"),
        ("2,a-0000,0,down\n1,a-0000,0,up\n", "row 3, column 'gpus': comes up without"),
    ],
)
def test_bad_logs_are_refused_with_their_place(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(DataError) as refused:
        log_of(tmp_path, text)
    assert place in str(refused.value)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    spec = ClusterSpec.parse("1x1:a")
    with pytest.raises(DataError, match="cannot be read"):
        read_outage_log(tmp_path / "absent.csv", spec)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_outage_log(tmp_path / "bytes.csv", spec)
    (tmp_path / "short.csv").write_text("time_s,node\n1,a\n", encoding="utf-8")
    with pytest.raises(DataError, match="row 1, column 'gpus'"):
        read_outage_log(tmp_path / "short.csv", spec)


@given(st.text(max_size=60))
@settings(max_examples=150)
def test_no_text_makes_the_reader_stumble(tmp_path_factory: Any, text: str) -> None:
    file = tmp_path_factory.mktemp("log") / "outages.csv"
    file.write_text("time_s,node,gpus,event\n" + text, encoding="utf-8", errors="replace")
    try:
        read_outage_log(file, ClusterSpec.parse("1x2:a"))
    except DataError as error:
        assert str(file) in str(error)


def test_failures_come_at_the_rate_they_were_given() -> None:
    spec = ClusterSpec.parse("10x4:a")
    model = Mtbf(node_mtbf_s=1000.0, node_mttr_s=100.0, gpu_mtbf_s=500.0, gpu_mttr_s=50.0)
    changes = list(islice(model.changes(spec, np.random.default_rng(1), 7.0), 40_000))
    times = [c.time_s for c in changes]
    assert times == sorted(times)
    assert times[0] > 7.0
    span = times[-1] - 7.0
    nodes = [c for c in changes if not c.mask and c.down]
    gpus = [c for c in changes if c.mask and c.down]
    assert len(nodes) / span == pytest.approx(10 / 1100, rel=0.05)
    assert len(gpus) / span == pytest.approx(40 / 550, rel=0.05)
    again = list(islice(model.changes(spec, np.random.default_rng(1), 7.0), 100))
    assert again == changes[:100]
    assert list(Mtbf().changes(spec, np.random.default_rng(1), 0.0)) == []
    with pytest.raises(UsageError, match="gpu_mtbf_s is 0"):
        Mtbf(gpu_mtbf_s=0.0)


def test_nodes_come_and_go_by_the_day() -> None:
    # Away from 22:00 to 06:00; the run begins at midnight, so the node is away at once.
    night = Daily(nodes=("a-*1",), from_s=22 * 3600.0, to_s=6 * 3600.0)
    spec = ClusterSpec.parse("2x1:a")
    changes = list(islice(night.changes(spec, np.random.default_rng(0), 0.0), 4))
    assert [(c.time_s / 3600, c.node, c.down) for c in changes] == [
        (-2.0, 1, True),
        (6.0, 1, False),
        (22.0, 1, True),
        (30.0, 1, False),
    ]
    driver, memory, _ = run([job("j", 0, 3600, 2)], "2x1:a", [night])
    assert driver.outcomes.start_s[0] == 6 * 3600.0
    assert [(t / 3600, k) for t, k, *_ in memory.devices] == [
        (0.0, "device_lost"),
        (6.0, "device_returned"),
    ]
    with pytest.raises(UsageError, match="no node matches 'b'"):
        list(Daily(nodes=("b",), from_s=0, to_s=1).changes(spec, np.random.default_rng(0), 0.0))
    with pytest.raises(UsageError, match="same instant"):
        Daily(nodes=("a",), from_s=0, to_s=86_400)
    with pytest.raises(UsageError, match="to_s is -1"):
        Daily(nodes=("a",), from_s=0, to_s=-1)


@given(
    jobs=st.lists(
        st.tuples(st.integers(0, 50), st.integers(1, 60), st.integers(1, 6)), min_size=1, max_size=8
    ),
    seed=st.integers(0, 1000),
    every=st.sampled_from([1.0, 5.0]),
)
@settings(max_examples=60)
def test_work_done_is_work_asked(jobs: list[tuple[int, int, int]], seed: int, every: float) -> None:
    sources: list[Source] = [
        Mtbf(node_mtbf_s=80.0, node_mttr_s=10.0, gpu_mtbf_s=200.0, gpu_mttr_s=20.0),
        Daily(nodes=("a-0002",), from_s=10.0, to_s=25.0, period_s=60.0),
    ]
    rows = [job(f"j{i}", s, d, g) for i, (s, d, g) in enumerate(jobs)]
    driver, memory, backend = run(
        rows, "3x2:a", sources, seed=seed, checkpoints=Checkpoints(every_s=every)
    )
    workload = driver.workload
    for rank in range(len(workload)):
        asked = workload.job(rank)
        held = [a for a in memory.allocations if a[0] == rank]
        progress = sum(max(0.0, end - begin) * rate for _, _, _, begin, end, rate, _ in held)
        lost = driver.outcomes.lost_gpu_s[rank] / asked.request.num_gpus
        assert progress - lost == pytest.approx(asked.duration_s)
        assert sum(1 for a in held if a[-1] == "fail") == driver.outcomes.failures[rank]
    in_service(memory)
    free = driver.view.free
    assert backend.returning == (
        free.down.bit_count() + 6 - sum(pool.capacity for pool in free.pools)
    )
    _, again, _ = run(rows, "3x2:a", sources, seed=seed, checkpoints=Checkpoints(every_s=every))
    assert again.events == memory.events
    assert again.devices == memory.devices


def in_service(memory: MemoryLog) -> None:
    """No job holds a device while it is out of service, and none is lost or returned twice."""
    away: dict[tuple[int, int], float] = {}
    spans: list[tuple[int, int, float, float]] = []
    for time_s, kind, node, mask, _ in memory.devices:
        for gpu in range(mask.bit_length()):
            if mask >> gpu & 1:
                if kind == "device_lost":
                    assert (node, gpu) not in away
                    away[node, gpu] = time_s
                else:
                    spans.append((node, gpu, away.pop((node, gpu)), time_s))
    spans += [(node, gpu, since, float("inf")) for (node, gpu), since in away.items()]
    for _, allocation, start, _, end, _, _ in memory.allocations:
        for node, mask in allocation.shares:
            for lost_node, gpu, since, until in spans:
                if lost_node == node and mask >> gpu & 1:
                    assert end <= since or start >= until
