"""Worker maps: ranks in contiguous blocks, nothing lost, nothing twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces import Allocation, ClusterSpec, UsageError, WorkerMap
from traces.workermap import Gpu, devices_of

MAPS = st.dictionaries(
    st.tuples(st.integers(0, 9), st.integers(0, 7)), st.integers(1, 16), min_size=1, max_size=12
).map(lambda counts: WorkerMap.of(counts.keys(), counts.values()))


@given(MAPS)
def test_every_rank_is_on_exactly_one_device(workers: WorkerMap) -> None:
    ranks = [rank for _, block in workers.blocks() for rank in block]
    assert ranks == list(range(workers.num_workers))
    assert [block for _, block in workers.blocks()] == [
        workers.ranks(i) for i in range(workers.num_gpus)
    ]
    for gpu, block in workers.blocks():
        assert {workers.device_of(rank) for rank in block} == {gpu}


@given(MAPS)
def test_text_and_allocation_say_the_same(workers: WorkerMap) -> None:
    assert WorkerMap.parse(str(workers)) == workers
    allocation = workers.allocation()
    assert allocation.num_gpus == workers.num_gpus
    assert {(n, g) for n, mask in allocation.shares for g in range(8) if mask >> g & 1} == set(
        workers.gpus
    )
    assert list(allocation.shares) == sorted(allocation.shares)


def test_it_reads_by_type() -> None:
    spec = ClusterSpec.parse("1x2:v100,1x2:t4")
    workers = WorkerMap.of([(0, 1), (0, 0), (1, 0)], [4, 4, 2])
    assert workers.layout(spec) == (("v100", 4), ("v100", 4), ("t4", 2))
    assert workers.describe(spec) == "v100:4+4 t4:2"
    assert str(workers) == "0/1:4 0/0:4 1/0:2"
    assert workers.ranks(2) == range(8, 10)


def test_an_allocation_lists_its_devices() -> None:
    spec = ClusterSpec.parse("1x4:v100,1x2:t4")
    assert devices_of(Allocation(((0, 0b1010), (1, 0b1))), spec) == (
        Gpu(0, 1, "v100"),
        Gpu(0, 3, "v100"),
        Gpu(1, 0, "t4"),
    )
    assert WorkerMap.of(devices_of(Allocation(((1, 0b11),)), spec), [1, 2]).gpus == ((1, 0), (1, 1))


@pytest.mark.parametrize(
    ("gpus", "counts", "words"),
    [
        ([], [], "no device"),
        ([(0, 0)], [1, 2], "1 devices but 2 counts"),
        ([(0, 0), (0, 0)], [1, 2], "comes twice"),
        ([(0, 0), (0, 1)], [1, 0], "at least 1"),
        ([(0, -1)], [1], "from 0"),
    ],
)
def test_what_does_not_hold_together_is_refused(
    gpus: list[tuple[int, int]], counts: list[int], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        WorkerMap.of(gpus, counts)


@pytest.mark.parametrize("text", ["", "0/0", "0/0:4,0/1:4", "a/b:c", "0/0:-1"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="NODE/GPU:WORKERS"):
        WorkerMap.parse(text)


def test_a_rank_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="no virtual rank 4"):
        WorkerMap.of([(0, 0)], [4]).device_of(4)
