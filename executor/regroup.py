"""The requests of a change of devices: state and rows to who needs them, and a new generation.

State goes from peers to newcomers, shared out evenly over those that have it, or comes from a
checkpoint, or is built anew. Rows of sharded tables go from where they are to the devices of their
shards, and for a checkpoint all to the device that writes it.

Leaves out: the order in which all this is asked (``executor.scripts``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from executor import messages as m
from executor.choosing import Target
from executor.faults import Fault
from executor.pool import Handle
from executor.runner import Part
from executor.shards import Kept, Reshuffle, Sharding, ShardMap, assigned
from traces.workermap import WorkerMap

Ranks = tuple[int, int]
"""The first rank of a device, and its last + 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What the requests of one change of devices have in common.

    ``name`` of the job, like no other's at ``address``, the agent's board. ``faults``:
    those that are still to be injected.
    """

    name: str
    generation: int
    address: str
    faults: tuple[Fault, ...] = ()

    def meeting(self, purpose: str, index: int, size: int) -> m.Meeting:
        """Where ``size`` devices meet for a purpose."""
        prefix = f"{self.name}/{self.generation}/{purpose}"
        return m.Meeting(address=self.address, prefix=prefix, index=index, size=size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """How rows lie when all have what they need.

    ``shards``: of the next generation, None if tables are not sharded. ``holding``: what its rows
    are called; None: every device has whole tables, and keeps its shards of them.
    """

    shards: ShardMap | None = None
    holding: int | None = None


def bring(
    change: Change,
    target: Target[Handle],
    devices: Sequence[Handle],
    worker_map: WorkerMap,
    *,
    sharding: Sharding | None,
    again: Mapping[Handle, m.Attach],
    numbers: Iterator[int],
) -> Part[Placed]:
    """Give every device of the new map the state of the target.

    ``again``: how workers that have trained build the task anew, for a job that goes back to its
    beginning. ``numbers`` names holdings.
    """
    blocks = dict(zip(devices, _blocks(worker_map), strict=True))
    needy = {handle: blocks[handle] for handle in devices if handle not in target.holders}
    shards = None if sharding is None else _shards(target, devices, sharding)
    if shards is not None and target.rows is not None:
        rows = target.rows
        wanted = {handle: shards.held(index) for index, handle in enumerate(devices)}
        if rows.size == len(devices) and wanted == dict(rows.numbers) and not needy:
            return Placed(shards=shards, holding=rows.holding)
        into = next(numbers)
        yield _to_their_devices(change, target, rows, wanted, needy, into)
        return Placed(shards=shards, holding=into)
    if needy and target.path is not None:
        yield {handle: m.Restore(path=target.path) for handle in devices}
    elif needy and target.contexts is None:
        trained = {handle: again[handle] for handle in devices if handle in again}
        if trained:
            yield trained
    elif needy:
        yield _moves(change, target, needy)
    return Placed(shards=shards)


def save(change: Change, target: Target[Handle]) -> Part[str]:
    """Write a checkpoint of a target that has contexts and holders; return its path."""
    assert target.contexts is not None
    writer = target.holders[0]
    if target.rows is not None:
        writer = next(iter(target.rows.numbers))
        yield _together(change, target, target.rows, writer)
    replies = yield {writer: m.Save(contexts=target.contexts)}
    return str(replies[writer].value)


def configure(
    change: Change,
    target: Target[Handle],
    devices: Sequence[Handle],
    worker_map: WorkerMap,
    placed: Placed,
    number: int,
) -> dict[Handle, m.Configure]:
    """Begin the generation. ``number``: what rows are called that are kept of whole tables."""
    blocks = _blocks(worker_map)
    batch = {}
    for index, handle in enumerate(devices):
        mine = None
        if target.contexts is not None:
            ranks = [*range(*blocks[index]), *range(*blocks[index - 1])]
            mine = {rank: target.contexts[rank] for rank in ranks}
        meeting = change.meeting("step", index, len(devices))
        batch[handle] = m.Configure(
            generation=change.generation,
            meeting=replace(meeting, device=_exchange_on(devices)),
            blocks=blocks,
            step=target.step,
            contexts=mine,
            faults=change.faults,
            shards=placed.shards,
            holding=placed.holding,
            number=number,
        )
    return batch


def _blocks(worker_map: WorkerMap) -> tuple[Ranks, ...]:
    return tuple((ranks.start, ranks.stop) for _, ranks in worker_map.blocks())


def _shards(target: Target[Handle], devices: Sequence[Handle], sharding: Sharding) -> ShardMap:
    """Devices keep the number of their shard where they can."""
    before = {} if target.rows is None else target.rows.numbers
    numbers = [before[handle][0] if handle in before else None for handle in devices]
    return assigned(numbers, sharding.mirrored)


def _to_their_devices(
    change: Change,
    target: Target[Handle],
    rows: Kept[Handle],
    wanted: Mapping[Handle, tuple[int, ...]],
    needy: Mapping[Handle, Ranks],
    into: int,
) -> dict[Handle, m.Reshard]:
    """Give every device the rows of its shards, and newcomers the dense state."""
    holders = [h for h in target.holders if h in rows.numbers]
    moves = _moves(change, target, needy, [h for h in holders if h not in needy])
    plan = _plan(moves, rows, wanted, len(wanted))
    return {
        handle: m.Reshard(move=move, plan=plan, holding=rows.holding, into=into)
        for handle, move in moves.items()
    }


def _together(
    change: Change, target: Target[Handle], rows: Kept[Handle], writer: Handle
) -> dict[Handle, m.Reshard]:
    """Put all rows together on the device that writes."""
    moves = _moves(change, target, {}, rows.numbers, purpose="gather")
    plan = _plan(moves, rows, {writer: (0,)}, 1)
    return {
        handle: m.Reshard(move=move, plan=plan, holding=rows.holding, into=None)
        for handle, move in moves.items()
    }


def _moves(
    change: Change,
    target: Target[Handle],
    needy: Mapping[Handle, Ranks],
    others: Iterable[Handle] = (),
    *,
    purpose: str = "move",
) -> dict[Handle, m.Move]:
    """Newcomers are shared out over the peers that have the state; ``others`` are there too."""
    sources = list(target.holders)[: len(needy)]
    party = [*sources, *needy, *(h for h in others if h not in sources)]
    batch: dict[Handle, m.Move] = {}
    for index, handle in enumerate(party):
        targets = tuple(len(sources) + i for i in range(len(needy)) if i % len(sources) == index)
        receives = handle in needy
        source = (index - len(sources)) % len(sources) if receives else None
        batch[handle] = m.Move(
            generation=change.generation,
            meeting=change.meeting(purpose, index, len(party)),
            step=target.step,
            source=source,
            ranks=needy.get(handle, (0, 0)),
            targets=targets if index < len(sources) else (),
            faults=change.faults,
        )
    return batch


def _plan(
    party: Iterable[Handle],
    rows: Kept[Handle],
    wanted: Mapping[Handle, tuple[int, ...]],
    size: int,
) -> Reshuffle:
    members = list(party)
    return Reshuffle(
        held=tuple(rows.numbers.get(handle, ()) for handle in members),
        size_before=rows.size,
        wanted=tuple(wanted.get(handle, ()) for handle in members),
        size_after=size,
    )


def _exchange_on(handles: Iterable[Handle]) -> str:
    """GPUs exchange among themselves if each worker has one of its own; NCCL shares none."""
    names = [handle.lane.device for handle in handles]
    return "cuda" if "cpu" not in names and len(set(names)) == len(names) > 1 else "cpu"
