"""Every placement on clusters small enough to draw.

A drawing shows one node per column and one GPU per cell, GPU 0 at the bottom: ``#`` is taken,
``.`` free, a letter the gang that was placed.
"""

from __future__ import annotations

import pytest

from policies.free import FreeGpus
from policies.registry import make_placement
from traces import Allocation, ClusterSpec, Request
from traces.cluster import Node


def cluster(*taken: int, size: int = 4, rack: int | None = None) -> FreeGpus:
    """Nodes of ``size`` GPUs of which the lowest ``taken`` are occupied."""
    suffix = "" if rack is None else f":{rack}"
    free = FreeGpus(ClusterSpec.parse(f"{len(taken)}x{size}:a{suffix}"))
    for node, count in enumerate(taken):
        if count:
            mask = (1 << count) - 1
            free.take(Allocation(((node, mask),)), Request(num_gpus=count))
    return free


def nodes(*machines: tuple[int, int | None, int | None], gpu_type: str = "a") -> ClusterSpec:
    """Nodes of (GPUs, CPU/1000, MiB)."""
    return ClusterSpec(
        tuple(
            Node(
                name=f"n{i}",
                gpu_type=gpu_type if gpus else "cpu",
                num_gpus=gpus,
                cpu_milli=cpu,
                memory_mib=memory,
            )
            for i, (gpus, cpu, memory) in enumerate(machines)
        )
    )


def shares(name: str, request: Request, free: FreeGpus) -> dict[int, int] | None:
    """Where a placement puts a request: GPUs by node."""
    allocation = make_placement(name).place(request, free)
    if allocation is None:
        return None
    assert free.missing(allocation, request) is None
    return {node: mask.bit_count() for node, mask in allocation.shares}


# Taken per node 1 3 0 2, hence free per node 3 1 4 2:
#
#   GPU 3   .  .  .  .        consolidated, gang of 2: the tightest node that holds it is node 3;
#   GPU 2   .  #  .  .        gang of 5: one empty node (2) and the tightest for the rest (1);
#   GPU 1   .  #  .  #        gang of 8: there is only one empty node, so it waits.
#   GPU 0   #  #  .  #
#     node  0  1  2  3
@pytest.mark.parametrize(
    ("name", "gang", "expected"),
    [
        ("count", 2, {0: 2}),
        ("count", 4, {0: 3, 1: 1}),
        ("consolidated", 1, {1: 1}),
        ("consolidated", 2, {3: 2}),
        ("consolidated", 3, {0: 3}),
        ("consolidated", 4, {2: 4}),
        ("consolidated", 5, {1: 1, 2: 4}),
        ("consolidated", 6, {2: 4, 3: 2}),
        ("consolidated", 8, None),
        ("consolidated:require=false", 4, {2: 4}),
        ("consolidated:require=false", 8, {0: 3, 1: 1, 2: 4}),  # three are the fewest
        ("spread", 1, {2: 1}),
        ("spread", 3, {2: 3}),
        ("spread", 6, {0: 2, 2: 4}),
        ("spread:each_gpu=true", 2, {0: 1, 2: 1}),  # node 2 falls to 3 free, as node 0 has
        ("spread:each_gpu=true", 5, {0: 2, 2: 3}),
        ("best-fit", 1, {1: 1}),
        ("best-fit", 4, {2: 4}),
        ("best-fit", 5, {0: 2, 1: 1, 3: 2}),  # the fullest nodes, whatever their number
        ("topology", 2, {3: 2}),
        ("topology", 5, {1: 1, 2: 4}),
        ("fgd", 2, {0: 2}),  # unprepared: first fit
        ("fgd", 8, {0: 3, 1: 1, 2: 4}),
    ],
)
def test_gangs(name: str, gang: int, expected: dict[int, int] | None) -> None:
    assert shares(name, Request(num_gpus=gang), cluster(1, 3, 0, 2)) == expected


ALL = (
    "count",
    "consolidated",
    "consolidated:require=false",
    "spread",
    "spread:each_gpu=true",
    "best-fit",
    "topology",
    "fgd",
)


@pytest.mark.parametrize("name", ALL)
def test_a_gang_that_must_stay_on_one_node_stays_there_or_waits(name: str) -> None:
    gang = Request(num_gpus=3, single_node=True)
    found = shares(name, gang, cluster(3, 2, 1))
    assert found == {2: 3}
    assert shares(name, gang, cluster(2, 2, 2)) is None


# Thousandths free on the two GPUs of three nodes (share of 400 to place):
#
#   GPU 1   1000  1000  1000      count opens no whole GPU while node 1's GPU 0 can hold it;
#   GPU 0   1000   500   300      best-fit takes the fullest that can; spread the emptiest node.
#     node    0     1     2
@pytest.mark.parametrize(
    ("name", "node", "mask"),
    [
        ("count", 1, 0b01),
        ("consolidated", 1, 0b01),
        ("topology", 1, 0b01),
        ("best-fit", 2, 0b10),  # node 2 has the least left, and only its GPU 1 can hold 400
        ("spread", 0, 0b01),
    ],
)
def test_shares(name: str, node: int, mask: int) -> None:
    free = FreeGpus(ClusterSpec.parse("3x2:a"))
    free.take(Allocation(((1, 1),), 500), Request(num_gpus=1, gpu_milli=500))
    free.take(Allocation(((2, 1),), 700), Request(num_gpus=1, gpu_milli=700))
    request = Request(num_gpus=1, gpu_milli=400)
    assert make_placement(name).place(request, free) == Allocation(((node, mask),), 400)


def test_a_share_opens_a_whole_gpu_only_when_it_must() -> None:
    free = FreeGpus(ClusterSpec.parse("2x1:a"))
    free.take(Allocation(((0, 1),), 700), Request(num_gpus=1, gpu_milli=700))
    for name in ALL:
        placed = make_placement(name).place(Request(num_gpus=1, gpu_milli=400), free)
        assert placed == Allocation(((1, 1),), 400)
        big = make_placement(name).place(Request(num_gpus=2, single_node=True), free)
        assert big is None


@pytest.mark.parametrize("name", ALL)
def test_cpu_jobs_take_a_host_with_room_even_one_without_gpus(name: str) -> None:
    free = FreeGpus(nodes((2, 4000, 1024), (0, 16000, 4096)))
    job = Request(num_gpus=0, cpu_milli=8000)
    placed = make_placement(name).place(job, free)
    assert placed == Allocation(((1, 0),))
    free.take(placed, job)
    free.take(placed, job)
    assert make_placement(name).place(job, free) is None


# A gang of 6 that wants 12 CPUs in all, 2 beside each GPU:
#
#   GPUs   4    4    4
#   CPUs   2    8    8      node 0 can stand beside one of its GPUs only
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("count", {0: 1, 1: 4, 2: 1}),
        ("consolidated", {1: 4, 2: 2}),
        ("spread", {0: 1, 1: 4, 2: 1}),
        ("topology", {1: 4, 2: 2}),
        ("fgd", {1: 4, 2: 2}),
        ("best-fit", {0: 1, 1: 4, 2: 1}),
    ],
)
def test_hosts_take_their_part_in_proportion(name: str, expected: dict[int, int]) -> None:
    free = FreeGpus(nodes((4, 2000, None), (4, 8000, None), (4, 8000, None)))
    gang = Request(num_gpus=6, cpu_milli=12000)
    assert shares(name, gang, free) == expected
    placed = make_placement(name).place(gang, free)
    assert placed is not None
    free.take(placed, gang)
    assert [free.cpu_milli[n] for n in range(3)] == [
        have - 2000 * expected.get(n, 0) for n, have in enumerate((2000, 8000, 8000))
    ]


def test_consolidation_knows_nodes_of_different_sizes() -> None:
    # Nodes of 8, 4, 4, 4: a gang of 16 needs three at least, the widest that are wholly free.
    free = FreeGpus(nodes(*((n, None, None) for n in (8, 4, 4, 4))))
    assert shares("consolidated", Request(num_gpus=16), free) == {0: 8, 1: 4, 2: 4}
    free.take(Allocation(((0, 1),)), Request(num_gpus=1))
    assert shares("consolidated", Request(num_gpus=16), free) is None


def test_best_fit_weighs_cpus_like_gpus() -> None:
    # Free: node 0 has 2 of 4 GPUs and all 8 CPUs, node 1 has 3 GPUs and 2 CPUs:
    # 2/4 + 8/8 = 1.5 against 3/4 + 2/8 = 1.0, so the fuller node is node 1.
    free = FreeGpus(nodes((4, 8000, None), (4, 8000, None)))
    free.take(Allocation(((0, 0b11),)), Request(num_gpus=2))
    free.take(Allocation(((1, 0b1),)), Request(num_gpus=1, cpu_milli=6000))
    assert shares("best-fit", Request(num_gpus=1, cpu_milli=1000), free) == {1: 1}


def test_exact_by_count_is_said_per_request() -> None:
    plain, limited = cluster(0, 0), FreeGpus(nodes((4, 8000, None)))
    count, strict = make_placement("count"), make_placement("consolidated")
    assert count.exact_by_count(Request(num_gpus=3), plain)
    assert not count.exact_by_count(Request(num_gpus=3, single_node=True), plain)
    assert not count.exact_by_count(Request(num_gpus=1, gpu_milli=500), plain)
    assert not count.exact_by_count(Request(num_gpus=0), plain)
    assert count.exact_by_count(Request(num_gpus=3), limited)  # asks nothing of the hosts
    assert not count.exact_by_count(Request(num_gpus=3, cpu_milli=1), limited)
    assert not strict.exact_by_count(Request(num_gpus=3), plain)
    assert strict.exact_by_count(Request(num_gpus=1), plain)
    assert make_placement("consolidated:require=false").exact_by_count(Request(num_gpus=3), plain)


def test_types_are_tried_in_the_order_of_the_request() -> None:
    spec = ClusterSpec.parse("1x4:a,1x4:b")
    for name in ALL:
        first = make_placement(name).place(Request(num_gpus=2, gpu_types=("b",)), FreeGpus(spec))
        assert first is not None
        assert first.shares[0][0] == 1
        none = make_placement(name).place(Request(num_gpus=5), FreeGpus(spec))
        assert none is None  # one job runs on one type


def test_a_machine_out_of_service_takes_nothing() -> None:
    free = FreeGpus(nodes((1, 8000, None), (1, 8000, None)))
    free.withdraw(0, 1, host=True)
    for name in ALL:
        placed = make_placement(name).place(Request(num_gpus=0, cpu_milli=1000), free)
        assert placed == Allocation(((1, 0),))
        assert make_placement(name).place(Request(num_gpus=2), free) is None
    assert free.missing(Allocation(((0, 0),)), Request(num_gpus=0)) is not None
    free.restore(0, 1, host=True)
    assert free.missing(Allocation(((0, 1),)), Request(num_gpus=1)) is None
