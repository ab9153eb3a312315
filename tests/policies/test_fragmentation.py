"""FGD's measure against its definition computed the slow way, and what FGD does with it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Clock, Driver
from policies.free import FreeGpus
from policies.placement.fgd import PreparedFgd
from policies.placement.fragmentation import Fragmentation, TaskClass, typical
from policies.registry import make_placement, make_policy
from simulator.cluster import SimulatedCluster
from tests.memorylog import MemoryLog, drive
from traces import Allocation, ClusterSpec, Request, UsageError, Workload
from traces.cluster import Node


def slow(classes: Sequence[TaskClass], free: FreeGpus, node: int) -> Fraction:
    """F_u from the paper's definition, GPU by GPU and class by class."""
    machine = free.spec.nodes[node]
    left = [free.milli(node, gpu) for gpu in range(machine.num_gpus)]
    total = sum(task.jobs for task in classes)
    expected = Fraction(0)
    for task in classes:
        request = task.request
        need = request.gpu_milli
        able = [m for m in left if m >= need]
        runs = (
            0 < request.num_gpus <= len(able)
            and (not request.gpu_types or machine.gpu_type in request.gpu_types)
            and free.hosts(node, request.cpu_milli, request.memory_mib)
        )
        unusable = sum(m for m in left if m < need) if runs else sum(left)
        expected += Fraction(task.jobs, total) * unusable
    return expected


tasks = st.builds(
    lambda gpus, milli, types, cpu, memory: Request(
        num_gpus=gpus,
        gpu_milli=milli if gpus == 1 else 1000,
        gpu_types=types,
        cpu_milli=cpu,
        memory_mib=memory,
        single_node=True,
    ),
    st.integers(0, 4),
    st.sampled_from([200, 500, 800, 1000]),
    st.sampled_from([(), (), ("a",)]),
    st.integers(0, 5),
    st.integers(0, 5),
)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 3), st.sampled_from("ab")), min_size=1, max_size=3),
    cpu=st.one_of(st.none(), st.integers(0, 9)),
    demand=st.dictionaries(tasks, st.integers(1, 5), min_size=1, max_size=5),
    arrivals=st.lists(tasks, max_size=8),
)
@settings(max_examples=150)
def test_the_measure_is_its_definition(
    sizes: list[tuple[int, str]],
    cpu: int | None,
    demand: dict[Request, int],
    arrivals: list[Request],
) -> None:
    spec = ClusterSpec(
        tuple(
            Node(name=f"n{i}", gpu_type=t, num_gpus=n, cpu_milli=cpu)
            for i, (n, t) in enumerate(sizes)
        )
    )
    classes = typical(demand, cover=1.0)
    measure = Fragmentation(classes)
    free = FreeGpus(spec)
    fgd = make_placement("fgd:cover=1,score=exact").prepare(demand)
    for request in arrivals:
        allocation = fgd.place(request, free)
        if allocation is not None:
            assert drop(classes, request, allocation, free) == max(
                drop(classes, request, other, free) for other in one_node_ways(request, free)
            )
            free.take(allocation, request)
        expected = [0.0] * len(free.pools)
        for node in range(len(spec.nodes)):
            expected[free.pool_of[node]] += float(slow(classes, free, node)) / 1000
        assert measure(free) == pytest.approx(expected)
        assert measure(free.fork()) == measure(free)


def drop(
    classes: Sequence[TaskClass], request: Request, allocation: Allocation, free: FreeGpus
) -> Fraction:
    node = allocation.shares[0][0]
    after = free.fork()
    after.take(allocation, request)
    return slow(classes, free, node) - slow(classes, after, node)


def one_node_ways(request: Request, free: FreeGpus) -> list[Allocation]:
    found = []
    for node, machine in enumerate(free.spec.nodes):
        if request.gpu_types and machine.gpu_type not in request.gpu_types:
            continue
        if request.num_gpus == 0:
            masks = [0]
        elif request.gpu_milli < 1000:
            masks = [1 << gpu for gpu in range(machine.num_gpus)]
        else:
            masks = [
                m
                for m in range(1 << machine.num_gpus)
                if m.bit_count() == request.num_gpus and not m & ~free.mask[node]
            ]
        found += [Allocation(((node, mask),), request.gpu_milli) for mask in masks]
    return [a for a in found if free.missing(a, request) is None]


# Half of the tasks want a whole GPU, half want 600/1000. One node, GPUs with 1000 and 500 left:
#   whole: can run; the 500 are too little            -> 500
#   600:   can run; the 500 are too little as well    -> 500        F = 500 of 1500 idle
# With 1000 and 700 left: 700 for the whole, 0 for the 600          F = 350
def test_by_hand() -> None:
    whole, part = Request(num_gpus=1), Request(num_gpus=1, gpu_milli=600)
    measure = Fragmentation(typical({whole: 1, part: 1}))
    spec = ClusterSpec.parse("1x2:a")
    for taken, expected in ((500, 0.5), (300, 0.35)):
        free = FreeGpus(spec)
        free.take(Allocation(((0, 1),), taken), Request(num_gpus=1, gpu_milli=taken))
        assert measure(free) == [expected]


# A 400 share and two GPUs with 600 left and 1000 left. Tasks: whole GPUs, and 600 shares.
#   on the GPU with 600: 200 left; F falls from 300 (whole: 600/2) to 200 (both: 200)   drop 100
#   on the whole GPU: two with 600; whole cannot run: 1200/2 = 600                      drop -300
def test_fgd_keeps_what_tasks_need() -> None:
    whole, part = Request(num_gpus=1), Request(num_gpus=1, gpu_milli=600)
    free = FreeGpus(ClusterSpec.parse("1x2:a"))
    request = Request(num_gpus=1, gpu_milli=400)
    free.take(Allocation(((0, 0b10),), 400), request)
    fgd = make_placement("fgd").prepare({whole: 1, part: 1})
    assert fgd.place(request, free) == Allocation(((0, 0b10),), 400)
    assert make_placement("fgd").place(request, free) == Allocation(((0, 0b01),), 400)


def test_classes_are_the_most_frequent_requests() -> None:
    a, b, c = (Request(num_gpus=n) for n in (1, 2, 4))
    assert [t.request for t in typical({c: 5, a: 90, b: 5})] == [a, b]
    assert [t.request for t in typical({a: 94, b: 3, c: 3}, cover=0.98)] == [a, b, c]
    assert typical({}) == ()
    assert Fragmentation(())(FreeGpus(ClusterSpec.parse("2x2:a"))) == [0.0]
    with pytest.raises(UsageError, match="cover is 0"):
        typical({a: 1}, cover=0.0)
    with pytest.raises(UsageError, match="cover is 2"):
        make_placement("fgd:cover=2")


def test_a_gang_larger_than_a_node_is_a_task_of_a_whole_node() -> None:
    gang = Request(num_gpus=4)
    measure = Fragmentation(typical({gang: 1}))
    free = FreeGpus(ClusterSpec.parse("2x2:a"))
    assert measure(free) == [0.0]
    free.take(Allocation(((0, 1),)), Request(num_gpus=1))
    assert measure(free) == [1.0]  # the GPU beside it


def test_the_driver_prepares_the_placement() -> None:
    workload = Workload.from_jobs(
        [
            {"job_id": f"j{i}", "submit_s": i, "duration_s": 10, "num_gpus": 1, "gpu_milli": milli}
            for i, milli in enumerate((400, 400, 600, 1000))
        ]
    )
    driver, log = drive(workload, "1x2:a", "fifo", "fgd")
    assert isinstance(driver.view.placement, PreparedFgd)
    assert sum(t.jobs for t in driver.view.placement.classes) == 4
    assert {rank for rank, *_ in log.allocations} == {0, 1, 2, 3}
    assert driver.view.placement.params() == {"cover": 0.95, "score": "published", "classes": 3}


class Sampled(MemoryLog):
    """A log that keeps the fragmented GPUs of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.fragmented: list[tuple[float, float]] = []

    def sample(self, *values: object) -> None:
        time_s, fragmented = values[0], values[4]
        assert isinstance(time_s, float)
        assert isinstance(fragmented, float)
        self.fragmented.append((time_s, fragmented))


def test_samples_carry_the_measure() -> None:
    # Two jobs of 2 GPUs are typical; while the 1-GPU job runs (0 to 15) its neighbour is wasted.
    rows = [{"job_id": "a", "submit_s": 0, "duration_s": 15, "num_gpus": 1}]
    rows += [{"job_id": f"b{i}", "submit_s": 20, "duration_s": 15, "num_gpus": 2} for i in "12"]
    workload = Workload.from_jobs(rows)
    measure = Fragmentation(typical(workload.demand(), cover=0.6))
    spec, clock, log = ClusterSpec.parse("1x2:a"), Clock(), Sampled()
    Driver(
        clock=clock,
        workload=workload,
        spec=spec,
        policy=make_policy("fifo"),
        placement=make_placement("count"),
        backend=SimulatedCluster(clock, spec),
        log=log,
        sample_s=10.0,
        fragmented=lambda view: measure(view.free),
    ).run()
    assert log.fragmented[:4] == [(0.0, 1.0), (10.0, 1.0), (20.0, 0.0), (30.0, 0.0)]
