"""What the agent and its workers say to each other.

Values over a private pipe between a process and its child, so they travel as pickles. A request has
a serial number and gets one reply; the other messages of a worker are news. Everything that belongs
to a generation carries its number, so that old news can be told from new.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from executor.devices import DeviceLane
from executor.errors import ExecutorError
from executor.faults import Fault
from executor.layout import StepReport
from executor.levels import Agreement
from executor.shards import Held, Reshuffle, ShardMap
from executor.task import TaskSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What is done beside the steps; none of it changes a number of the run.

    ``checkpoint_every``: in steps, 0 only on demand; ``folder``: where; ``keep``: how many stay.
    ``digest_every``: every so many steps each device reports digests of all state; 0 never.
    ``audit_every``: how often replicas compare checksums; 0 never. ``deadline_s``: a device whose
    own part of a step takes longer is taken for hung. ``overlap``: exchange during backward.
    ``fetch_ahead``: batches per logical worker that are fetched before they are asked for.
    ``gradients``: where partial sums wait, on the device or, as in EasyScale, on the host. Raises
    ExecutorError for numbers out of range.
    """

    folder: str | None = None
    checkpoint_every: int = 0
    keep: int = 2
    digest_every: int = 0
    audit_every: int = 0
    deadline_s: float = 60.0
    overlap: bool = True
    fetch_ahead: int = 0
    gradients: Literal["device", "host"] = "device"

    def __post_init__(self) -> None:
        for name, least in (
            *(("checkpoint_every", 0), ("keep", 1), ("digest_every", 0)),
            *(("audit_every", 0), ("fetch_ahead", 0)),
        ):
            if getattr(self, name) < least:
                raise ExecutorError(
                    "bad number",
                    where=name,
                    value=getattr(self, name),
                    expected=f"{least} or more",
                )
        if not 0 < self.deadline_s < math.inf:
            raise ExecutorError(
                "bad number", where="deadline_s", value=self.deadline_s, expected="more than 0"
            )
        if self.checkpoint_every and self.folder is None:
            raise ExecutorError(
                "checkpoints need a place", where="checkpoint_every", expected="a folder"
            )


# Requests: the agent to a worker.


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """Build the task of a job. ``order`` None: a new job's; the reply is its identity.

    ``reduction``: the kind of a new job's order.
    ``agreement``: what the job's lanes have in common at its determinism level, if it has one.
    ``battery``: the reply has the digests of the battery of operators beside the identity.
    """

    job_id: str
    task: TaskSpec
    lane: DeviceLane
    agreement: Agreement | None
    bucket_bytes: int
    reduction: str
    order: Any
    habits: Habits
    battery: bool = False
    serial: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where the devices of a group find each other: ``index`` of ``size`` under ``prefix``.

    ``device``: "cuda" if dense sums are exchanged between GPUs, else "cpu".
    """

    address: str
    prefix: str
    index: int
    size: int
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Send our state to devices of a meeting, or take it from one; the reply is our step.

    ``ranks``: first rank and last rank + 1 that who takes it will hold.
    """

    generation: int
    meeting: Meeting
    step: int
    source: int | None = None
    ranks: tuple[int, int] = (0, 0)
    targets: tuple[int, ...] = ()
    faults: tuple[Fault, ...] = ()
    serial: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """Take the state of a checkpoint; the reply is its step."""

    path: str
    serial: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Configure:
    """Begin a generation after ``step`` steps; the reply is the step of the replica.

    ``blocks``: first rank and last rank + 1 of every device; ``contexts``: those of our ranks and
    of the ranks we keep copies of, None before the first step. ``shards``: of the tables, if they
    are sharded; ``holding``: the rows that become ours, None if our tables are whole; ``number``:
    how those that are kept are called then.
    """

    generation: int
    meeting: Meeting
    blocks: tuple[tuple[int, int], ...]
    step: int
    contexts: Mapping[int, bytes] | None
    faults: tuple[Fault, ...] = ()
    shards: ShardMap | None = None
    holding: int | None = None
    number: int = 0
    serial: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshard:
    """Move rows of sharded tables, and state to newcomers as ``Move`` does.

    ``holding``: where the rows come from; ``into``: what they are called then, None to keep them
    for a file; the reply is the bytes sent.
    """

    move: Move
    plan: Reshuffle
    holding: int
    into: int | None
    serial: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Do the step that others have committed, from what is here; the reply is our step."""

    step: int
    serial: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Leave the generation and say what is there; the reply is a ``Surveyed``."""

    serial: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """The reply is the digests of all state and of our contexts, by name."""

    serial: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Write a checkpoint with these contexts of all ranks; the reply is its path."""

    contexts: Mapping[int, bytes]
    serial: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Detach:
    """Forget the job and be warm for another."""

    serial: int = 0


Request = Attach | Move | Restore | Reshard | Forward | Configure | Survey | Digest | Save | Detach


# Orders without a reply.


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Do steps until so many are committed. ``number`` rises from run to run."""

    generation: int
    until: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Pause run ``number`` at the next step boundary, together with the other devices."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon:
    """Do not wait any more for the devices of a generation."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Answered at once with a ``Pong``, whatever the worker is doing."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Open the lane's device, so that it is open when a job comes. There is no reply."""

    lane: DeviceLane


@dataclass(frozen=True, slots=True, kw_only=True)
class Quit:
    """End."""


# A worker to the agent.


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer to a request: a value, or why there is none (``lost``: a peer was lost)."""

    serial: int
    value: Any = None
    error: str | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """What a device holds: its replica's step (None: in pieces), contexts by step and rank.

    ``last``: the step that it committed last, which nobody may have been told of.
    ``rows``: of sharded tables, all after that step. ``prepared``: the next step can be done alone.
    """

    step: int | None
    contexts: Mapping[int, Mapping[int, bytes]]
    last: StepReport | None
    rows: tuple[Held, ...] = ()
    prepared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A step was committed here."""

    generation: int
    report: StepReport
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused:
    """This device stands at a step boundary and does nothing."""

    generation: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Broke:
    """A step could not be done. ``kind``: ``lost`` (a peer), ``garbage``, ``failed`` (here).

    ``culprits``: devices that are known to be at fault. ``refused``: the update was refused by the
    task on every device alike.
    """

    generation: int
    step: int
    kind: str
    text: str
    culprits: tuple[int, ...] = ()
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """An injected fault is about to happen."""

    fault: Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A periodic checkpoint was written, or could not be."""

    step: int
    path: str | None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """What a worker is doing, and for how long."""

    number: int
    phase: str
    phase_s: float


News = Progress | Paused | Broke | Fired | Saved | Pong
