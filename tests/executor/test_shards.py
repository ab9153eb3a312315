"""Sharded tables: the bits of whole ones, whatever happens to the devices."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from executor import checkpoint, sparse
from executor import events as e
from executor.agent import Agent
from executor.errors import ExecutorError, PeerLostError
from executor.exchange import Exchange
from executor.faults import Fault
from executor.jobspec import JobSpec
from executor.rows import RefusedError, Rows
from executor.shards import Held, Reshuffle, Sharding, ShardMap, assigned, covering, shard_of
from executor.workloads import workload
from models.sparse import EmbeddingTable, TableSet
from models.sparse.gradients import SparseGradient
from models.sparse.initial import GOLDEN
from tests.executor.test_schedules import random_schedule
from tests.executorcases import (
    Digests,
    contradiction,
    digests_of,
    first_difference,
    job,
    losses_of,
    on,
    trained,
)

STEPS = 8
WORD = (1 << 64) - 1


def sharded(
    workers: int = 4,
    *,
    mirrored: bool = True,
    name: str = "rows",
    faults: Sequence[Fault] = (),
    steps: int = STEPS,
    max_ids: int | None = 60,
    job_id: str = "sharded",
    resume: bool = False,
    **habits: Any,
) -> JobSpec:
    settings = {"max_ids": max_ids} if name == "rows" else {}
    task = workload(name, workers, seed=3, **settings)
    spec = job(task, workers, steps, job_id=job_id, faults=faults, resume=resume, **habits)
    return replace(spec, sharding=Sharding(mirrored=mirrored))


def whole(workers: int = 4, **settings: Any) -> JobSpec:
    return replace(sharded(workers, job_id="whole", **settings), sharding=None)


@pytest.fixture(scope="module")
def references() -> dict[int, Digests]:
    return {}


def reference(agent: Agent, references: dict[int, Digests], workers: int = 4) -> Digests:
    """Digests by step of the job with whole tables on one device."""
    if workers not in references:
        references[workers] = digests_of(trained(agent, whole(workers), [(STEPS, on(workers))]))
    return references[workers]


def replicas(agent: Agent, job_id: str = "sharded") -> list[Any]:
    """The replicas of a job whose workers are threads."""
    return [h._worker._replica for h in agent.jobs[job_id].members.values()]  # type: ignore[attr-defined]


# Which shard.


def jump_hash(key: int, shards: int) -> int:
    """The algorithm as the paper prints it, in plain numbers."""
    bucket, onward = -1, 0
    while onward < shards:
        bucket = onward
        key = (key * 2862933555777941757 + 1) & WORD
        onward = int((bucket + 1) * ((1 << 31) / ((key >> 33) + 1)))
    return bucket


def mixed(z: int) -> int:
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & WORD
    return z ^ z >> 31


def test_the_shard_is_the_papers_hash_of_the_mixed_id() -> None:
    ids = [0, 1, -1, 77, 2**63 - 1, -(2**63), 123456789012345]
    for shards in (1, 2, 3, 7, 64):
        keys = [mixed((i * GOLDEN + 12345) & WORD) for i in ids]
        expected = [jump_hash(key, shards) for key in keys]
        assert shard_of(12345, torch.tensor(ids), shards).tolist() == expected


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 8])
def test_shards_are_even_and_one_more_takes_only_its_own_share(shards: int) -> None:
    ids = torch.arange(40_000)
    now, then = shard_of(7, ids, shards), shard_of(7, ids, shards + 1)
    assert bool((torch.bincount(now, minlength=shards) > 0.95 * len(ids) / shards).all())
    moved = now != then
    assert bool((then[moved] == shards).all())
    assert abs(float(moved.double().mean()) - 1 / (shards + 1)) < 0.01


def test_devices_that_stay_keep_their_shard() -> None:
    assert assigned([None, None], True).numbers == (0, 1)
    assert assigned([2, None, 0, 1], True).numbers == (2, 3, 0, 1)
    assert assigned([0, 2], True).numbers == (0, 1)  # shard 2 is no more
    shards = assigned([1, 0, 2], True)
    assert [shards.held(d) for d in range(3)] == [(1, 0), (0, 2), (2, 1)]
    assert [shards.mirror(d) for d in range(3)] == [2, 0, 1]


@given(st.data())
def test_a_reshuffle_brings_each_row_where_it_is_wanted_and_moves_no_other(
    data: st.DataObject,
) -> None:
    before = ShardMap(numbers=tuple(range(data.draw(st.integers(1, 5)))), mirrored=True)
    after_size = data.draw(st.integers(1, 5))
    dead = data.draw(st.integers(0, before.size - 1)) if before.size > 2 else None
    held = [() if d == dead else before.held(d) for d in range(before.size)]
    staying = data.draw(st.permutations(range(before.size)))[:after_size]
    numbers = assigned([*staying, *[None] * (after_size - len(staying))], True)
    party = max(before.size + after_size - len(staying), before.size)
    held += [()] * (party - before.size)
    wanted: list[tuple[int, ...]] = [()] * party
    for index in range(after_size):
        member = staying[index] if index < len(staying) else before.size + index - len(staying)
        wanted[member] = numbers.held(index)
    plan = Reshuffle(
        held=tuple(held), size_before=before.size, wanted=tuple(wanted), size_after=after_size
    )
    ids = torch.arange(200)
    old, new = shard_of(1, ids, before.size), shard_of(1, ids, after_size)
    for to in range(party):
        arrived = [plan.sent(d, to, old, new) for d in range(party) if d != to]
        there = torch.tensor([s in held[to] for s in old.tolist()])
        should = torch.tensor([s in wanted[to] for s in new.tolist()])
        times = torch.stack([*arrived, there & plan.kept(to, new)]).sum(0)
        assert bool((times == should.long()).all())  # once, and nothing else


def test_a_holding_counts_only_if_every_shard_of_it_lives() -> None:
    old = [Held(holding=1, size=2, numbers=(n,)) for n in (0, 1)]
    new = [Held(holding=4, size=3, numbers=n) for n in ((0, 2), (2, 1))]
    assert covering({"a": [old[0]], "b": [old[1], new[0]]}).holding == 1  # type: ignore[union-attr]
    found = covering({"a": [old[0], new[1]], "b": [old[1], new[0]]})
    assert found is not None and found.holding == 4 and found.numbers["a"] == (2, 1)
    assert covering({"a": [old[0]], "b": [new[0]]}) is None


# The same bits.


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_random_rescales_equal_whole_tables(
    agent: Agent, references: dict[int, Digests], mirrored: bool, seed: int
) -> None:
    """Parameters, moments, rows, counts, admission, eviction by age and by number, every step."""
    rng = random.Random(seed)
    workers = rng.choice([3, 4])
    schedule = random_schedule(rng, workers, STEPS)
    found = digests_of(trained(agent, sharded(workers, mirrored=mirrored), schedule))
    assert first_difference(found, reference(agent, references, workers)) is None, schedule


def test_longer_with_shards_has_the_bits_of_longer(agent: Agent) -> None:
    expected = trained(agent, whole(3, name="longer", steps=4), [(4, on(3))])
    schedule = [(2, on(1, 2)), (4, on(1, 1, 1))]
    events = trained(agent, sharded(3, name="longer", steps=4), schedule)
    assert first_difference(digests_of(events), digests_of(expected)) is None
    assert losses_of(events) == losses_of(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "number"), [*(("rows", 50 * i, 50) for i in range(3)), ("longer", 0, 12)]
)
def test_many_random_rescales(agent: Agent, name: str, first: int, number: int) -> None:
    known: dict[int, Digests] = {}
    for seed in range(1000 + first, 1000 + first + number):
        rng = random.Random(seed)
        workers = rng.randint(1, 8)
        if workers not in known:
            events = trained(agent, whole(workers, name=name), [(STEPS, on(workers))])
            known[workers] = digests_of(events)
        schedule = random_schedule(rng, workers, STEPS)
        spec = sharded(workers, name=name, mirrored=rng.random() < 0.5)
        found = digests_of(trained(agent, spec, schedule))
        assert first_difference(found, known[workers]) is None, (seed, schedule)


def test_another_order_of_summation_has_other_bits(
    agent: Agent, references: dict[int, Digests], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks above can fail: a device that adds up all that it has, in its own way."""
    right = sparse.partial_sums

    def wrong(parts: Any, block: range, num_ranks: int) -> Any:
        del num_ranks
        return right(parts, range(block.stop), block.stop)

    monkeypatch.setattr(sparse, "partial_sums", wrong)
    found = digests_of(trained(agent, sharded(), [(STEPS, on(1, 2, 1))]))
    difference = first_difference(found, reference(agent, references))
    assert difference is not None and difference[1].startswith("table/")


# Memory.


@pytest.mark.parametrize("mirrored", [True, False])
def test_a_device_holds_its_share_of_the_rows(agent: Agent, mirrored: bool) -> None:
    spec = sharded(mirrored=mirrored, max_ids=None, digest_every=0)
    spec = replace(spec, task=workload("rows", 4, ids=100_000, batch=64, admit_after=1))
    trained(agent, spec, [(2, on(4))])
    (only,) = replicas(agent)
    everything = set(only.task.tables.tables["item"].entries()[0].tolist())
    for devices in (2, 4):
        agent.rescale("sharded", on(*[4 // devices] * devices))
        agent.settle("sharded")
        tables = [r.task.tables.tables["item"] for r in replicas(agent)]
        held = [set(t.entries()[0].tolist()) for t in tables]
        assert set().union(*held) == everything
        copies = 2 if mirrored else 1
        assert sum(map(len, held)) == copies * len(everything)
        assert all(t.num_rows == len(ids) for t, ids in zip(tables, held, strict=True))
        share = copies / devices
        assert max(map(len, held)) < 1.15 * share * len(everything)
    agent.stop("sharded", checkpoint=False)
    agent.settle("sharded")


# Faults.

POINTS = ("micro-step", "exchange", "fold", "apply", "applied")


@pytest.mark.parametrize("point", POINTS)
def test_with_mirrors_a_killed_device_costs_the_step_in_flight(
    agent: Agent, references: dict[int, Digests], point: str
) -> None:
    faults = [Fault(kind="kill", step=3, rank=1, point=point)]
    events = trained(agent, sharded(faults=faults), [(STEPS, on(1, 2, 1))])
    assert contradiction(events, reference(agent, references)) is None
    recovered = [v for v in events if isinstance(v, e.Recovered)]
    assert [v.resumed_at for v in recovered] == [4 if point.startswith("appl") else 3]


def test_without_mirrors_a_killed_device_costs_what_came_after_the_checkpoint(
    agent: Agent, references: dict[int, Digests], tmp_path: Path
) -> None:
    faults = [Fault(kind="kill", step=5, rank=1, point="fold")]
    spec = sharded(mirrored=False, faults=faults, folder=str(tmp_path), checkpoint_every=2)
    events = trained(agent, spec, [(STEPS, on(1, 2, 1))])
    assert contradiction(events, reference(agent, references)) is None
    assert [v.resumed_at for v in events if isinstance(v, e.Recovered)] == [4]


def test_without_mirrors_and_checkpoints_a_killed_device_costs_everything(
    agent: Agent, references: dict[int, Digests]
) -> None:
    faults = [Fault(kind="kill", step=3, rank=1, point="fold")]
    events = trained(agent, sharded(mirrored=False, faults=faults), [(STEPS, on(2, 2))])
    assert contradiction(events, reference(agent, references)) is None
    assert [v.resumed_at for v in events if isinstance(v, e.Recovered)] == [0]


def test_a_device_left_behind_does_the_step_that_others_have_done(
    agent: Agent, references: dict[int, Digests], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has all that it needs; without mirrors nothing else could keep the shards together."""
    agree = Rows.agree
    broken: list[int] = []

    def breaks_once(rows: Rows, step: int) -> None:
        agree(rows, step)
        if step == 3 and rows._index == 1 and not broken:
            broken.append(step)
            raise PeerLostError("the others have heard the last word, and this one has not")

    monkeypatch.setattr(Rows, "agree", breaks_once)
    events = trained(agent, sharded(mirrored=False), [(STEPS, on(1, 2, 1))])
    assert contradiction(events, reference(agent, references)) is None
    assert [v.resumed_at for v in events if isinstance(v, e.Recovered)] == [4]


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize(("point", "rank"), [("transfer", 0), ("configure", 0), ("configure", 3)])
def test_a_death_while_rows_move_leaves_the_old_ones(
    agent: Agent, references: dict[int, Digests], mirrored: bool, point: str, rank: int
) -> None:
    """Rank 3 is to go to a newcomer: its death costs nothing, also without mirrors."""
    faults = [Fault(kind="kill", step=4, rank=rank, point=point)]
    spec = sharded(mirrored=mirrored, faults=faults)
    events = trained(agent, spec, [(4, on(2, 2)), (STEPS, on(1, 2, 1))])
    assert contradiction(events, reference(agent, references)) is None
    resumed = [v.resumed_at for v in events if isinstance(v, e.Recovered)]
    assert resumed == [4 if mirrored or rank == 3 else 0]


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 30])
def test_many_kills_with_mirrors(agent: Agent, references: dict[int, Digests], first: int) -> None:
    for seed in range(first, first + 30):
        rng = random.Random(seed)
        schedule = random_schedule(rng, 4, STEPS)
        steps = rng.sample(range(STEPS), 2)
        faults = [
            Fault(kind="kill", step=s, rank=rng.randrange(4), point=rng.choice(POINTS))
            for s in steps
        ]
        events = trained(agent, sharded(faults=faults), schedule)
        assert contradiction(events, reference(agent, references)) is None, (seed, schedule)


# Checkpoints.


def test_a_checkpoint_does_not_know_of_shards(
    agent: Agent, references: dict[int, Digests], tmp_path: Path
) -> None:
    """The same file from shards and from whole tables; each goes on as the other."""
    paths = {}
    for name, spec, where in (
        ("shards", sharded(job_id="job", folder=str(tmp_path / "shards")), on(1, 2, 1)),
        ("whole", replace(whole(folder=str(tmp_path / "whole")), job_id="job"), on(2, 2)),
    ):
        events = trained(agent, spec, [(4, where)])
        agent.stop("job")
        events += agent.settle("job")
        paths[name] = checkpoint.path_of(tmp_path / name, 4)
    assert paths["shards"].read_bytes() == paths["whole"].read_bytes()
    expected = reference(agent, references)
    for name, spec in (("shards", whole(resume=True)), ("whole", sharded(resume=True))):
        habits = replace(spec.habits, folder=str(tmp_path / name))
        again = replace(spec, job_id="job", habits=habits)
        found = digests_of(trained(agent, again, [(STEPS, on(1, 3))]))
        assert sorted(found) == [5, 6, 7, 8]
        assert first_difference(found, {s: expected[s] for s in found}) is None


# What is refused.


def lone_rows(table: EmbeddingTable) -> Rows:
    exchange = Exchange("", "", 0, 1)
    return Rows(TableSet([table]), 1, ShardMap(numbers=(0,), mirrored=True), exchange, 0)


def test_a_row_that_was_not_fetched_is_refused() -> None:
    table = EmbeddingTable("item", 2, 1)
    rows = lone_rows(table)
    rows.fetch([{"item": torch.tensor([5, 3])}])
    found = rows.tables("item", torch.tensor([3, 5, 3]))
    assert torch.equal(found, table.values(torch.tensor([3, 5, 3])))
    with pytest.raises(ExecutorError, match=r"id 4.*Task\.ids"):
        rows.tables("item", torch.tensor([3, 4]))
    rows.close()
    with pytest.raises(ExecutorError, match="only some rows are here"):
        rows.tables("item", torch.tensor([3]))


def test_a_sum_that_is_not_finite_is_refused_before_anything_changes() -> None:
    rows = lone_rows(EmbeddingTable("item", 2, 1))
    bad = SparseGradient(
        ids=torch.tensor([3, 9]),
        order_key=torch.tensor([0, 0]),
        grads=torch.tensor([[1.0, 2.0], [np.nan, 0.0]]),
        sightings=torch.tensor([1, 1]),
    )
    rows.bring([{"item": bad}], 0)
    with pytest.raises(RefusedError, match="table 'item', id 9"):
        rows.agree(0)
