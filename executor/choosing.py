"""From which step a job goes on, and whose state it takes: a choice from what is left.

At every change of devices each one says what it holds (``Surveyed``): the step of its replica,
contexts by step and rank, rows of sharded tables. The choice is

1. the latest step at which a replica and the contexts of all ranks live, and with sharded tables
   every row;
2. else the last checkpoint that can be read;
3. else the beginning.

If an audit found replicas that differ and could not say which is right, no replica is trusted, and
no checkpoint that may have been written after they began to differ: none later than the audit
before.

Pure: a device is whatever the caller calls it, and a checkpoint is a step and a way to read it.

Leaves out: how state gets to where it is wanted (``executor.regroup``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic

from executor.messages import Surveyed
from executor.shards import Device, Kept, covering

Contexts = Mapping[int, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target(Generic[Device]):
    """The step from which a job goes on, and where its contexts and state come from.

    ``contexts``: by rank, None at the beginning. ``holders``: devices whose replica is at this
    step; none if state comes from the checkpoint at ``path``. ``rows``: of sharded tables.
    """

    step: int
    contexts: Contexts | None
    path: str | None = None
    holders: tuple[Device, ...] = ()
    rows: Kept[Device] | None = None


def chosen(
    surveys: Mapping[Device, Surveyed],
    saved: Iterable[int],
    read: Callable[[int], Target[Device] | None],
    *,
    handed: Mapping[int, Contexts],
    num_workers: int,
    sharded: bool,
    distrusted: int | None = None,
    audit_every: int = 0,
) -> Target[Device]:
    """Return the step to go on from.

    ``surveys``: of the devices that live. ``handed``: contexts that the caller holds itself, by
    step. ``saved``: the steps of checkpoints, the latest first; ``read`` returns one as a target,
    or None if it is damaged. Neither is touched if a replica is chosen. ``distrusted``: the step at
    which an audit, one every ``audit_every`` steps, found replicas that differ; None: none did.
    """
    living = None
    if distrusted is None:
        living = _living(surveys, handed, num_workers, sharded)
    if living is not None:
        return living
    for step in saved:
        if distrusted is not None and step > distrusted - audit_every:
            continue
        target = read(step)
        if target is not None:
            return target
    return Target(step=0, contexts=None)


def _living(
    surveys: Mapping[Device, Surveyed],
    handed: Mapping[int, Contexts],
    num_workers: int,
    sharded: bool,
) -> Target[Device] | None:
    """The latest step of which all that is needed is on devices that live."""
    contexts: dict[int, dict[int, bytes]] = {step: dict(held) for step, held in handed.items()}
    replicas: dict[int, list[Device]] = {}
    for device, surveyed in surveys.items():
        for step, held in surveyed.contexts.items():
            contexts.setdefault(step, {}).update(held)
        if surveyed.step is not None:
            replicas.setdefault(surveyed.step, []).append(device)
    for step in sorted(replicas, reverse=True):
        holders = replicas[step]
        rows = covering({device: surveys[device].rows for device in holders})
        if len(contexts.get(step, {})) == num_workers and (rows is not None or not sharded):
            return Target(step=step, contexts=contexts[step], holders=tuple(holders), rows=rows)
    return None


def behind(surveys: Mapping[Device, Surveyed]) -> dict[Device, int]:
    """Return whose shards are a step behind those of others and can do that step alone: which."""
    latest = max((s.step for s in surveys.values() if s.step is not None), default=0)
    return {
        device: latest
        for device, surveyed in surveys.items()
        if surveyed.prepared and surveyed.step == latest - 1
    }
