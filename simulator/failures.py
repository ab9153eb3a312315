"""When devices and nodes go out of service and come back: a log, a failure model, a timetable.

Three sources of changes, each an iterator in order of time that never looks at the run:

- :class:`OutageLog`: what happened, from a CSV file ``time_s,node,gpus,event``;
- :class:`Mtbf`: every node and every GPU works for an exponential time and is repaired in an
  exponential time, independently (a two-state Markov process; the usual model where nothing better
  is known, for instance in Young's and Daly's work on checkpoint intervals);
- :class:`Daily`: nodes that are taken away for a part of every day and given back.

Left out: failures that load causes, that spread, or that announce themselves.
``simulator/outages.py`` applies the changes to a running cluster; examples are in
``docs/failures.md``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from heapq import heapify, heapreplace
from pathlib import Path
from typing import Protocol

import numpy as np

from traces import ClusterSpec, DataError, UsageError
from traces.cluster import mask_of
from traces.errors import did_you_mean

COLUMNS = ("time_s", "node", "gpus", "event")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A machine or some of its GPUs go ``down``, or come back.

    ``mask`` 0 means the machine as a whole (its CPUs too). ``forever``: the GPUs of it that stay
    away to the end, as a mask (for a machine: any bit). A device is in service when nothing that
    took it down still lasts.
    """

    time_s: float
    node: int
    mask: int
    down: bool
    detail: str
    forever: int = 0


class Source(Protocol):
    """Where changes come from."""

    def changes(
        self, spec: ClusterSpec, rng: np.random.Generator, start_s: float
    ) -> Iterator[Change]:
        """Yield changes in order of time; what lies before ``start_s`` takes effect then."""
        ...

    def describe(self) -> dict[str, object]:
        """What the run's record says of it."""
        ...


@dataclass(frozen=True, slots=True)
class OutageLog:
    """Changes as recorded; see :func:`read_outage_log`."""

    recorded: tuple[Change, ...]
    path: str = ""

    def describe(self) -> dict[str, object]:
        """The file and the number of its changes."""
        return {"source": "log", "path": self.path, "changes": len(self.recorded)}

    def changes(
        self, spec: ClusterSpec, rng: np.random.Generator, start_s: float
    ) -> Iterator[Change]:
        """Yield the recorded changes."""
        return iter(self.recorded)


def read_outage_log(path: Path | str, spec: ClusterSpec) -> OutageLog:
    """Read a CSV file with the columns ``time_s,node,gpus,event`` (further ones are ignored).

    ``time_s``: seconds on the trace's clock. ``node``: a name of the inventory. ``gpus``: indices
    separated by ``;``, or empty for the whole machine. ``event``: ``down`` or ``up``. Rows may be
    in any order; rows of one instant count in the order of the file. Outages of the same device
    add up: it is back when each has ended.

    Raises :class:`DataError` for files that cannot be read, unknown nodes and GPUs, and an ``up``
    of what is not down.
    """
    file = Path(path)
    nodes = {machine.name: i for i, machine in enumerate(spec.nodes)}
    found: list[tuple[int, Change]] = []
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    "column is missing",
                    file=file,
                    row=1,
                    column=missing[0],
                    expected=",".join(COLUMNS),
                )
            for row in reader:
                found.append((reader.line_num, _parse(row, nodes, spec, file, reader.line_num)))  # noqa: PERF401  (errors name the row read so far)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", file=file, expected="a CSV file") from error
    found.sort(key=lambda pair: pair[1].time_s)
    return OutageLog(_without_return(found, file), str(file))


def _parse(
    row: dict[str, str | None], nodes: dict[str, int], spec: ClusterSpec, file: Path, line: int
) -> Change:
    text = {column: (row.get(column) or "").strip() for column in COLUMNS}

    def bad(column: str, problem: str, expected: str) -> DataError:
        return DataError(
            problem, file=file, row=line, column=column, value=text[column], expected=expected
        )

    try:
        time_s = float(text["time_s"])
    except ValueError:
        time_s = math.nan
    if not math.isfinite(time_s):
        raise bad("time_s", "not a time", "seconds on the trace's clock")
    node = nodes.get(text["node"])
    if node is None:
        raise bad("node", "no such node", did_you_mean(text["node"], nodes))
    size = spec.nodes[node].num_gpus
    parts = [p.strip() for p in text["gpus"].split(";")] if text["gpus"] else []
    if any(not (p.isascii() and p.isdigit()) or int(p[:9]) >= size for p in parts):
        raise bad("gpus", "no such GPU", f"0 to {size - 1}, separated by ';', or nothing for all")
    if len(set(map(int, parts))) < len(parts):
        raise bad("gpus", "a GPU is there twice", "each index once")
    if text["event"] not in {"down", "up"}:
        raise bad("event", "not an event", "down or up")
    return Change(
        time_s=time_s,
        node=node,
        mask=mask_of([int(p) for p in parts]),
        down=text["event"] == "down",
        detail=f"log row {line}",
    )


def _without_return(found: list[tuple[int, Change]], file: Path) -> tuple[Change, ...]:
    """Check that what comes up was down, and mark what goes down for good.

    A device is away for good from the outage after which its count never comes back to zero.
    """
    count: dict[tuple[int, int], int] = {}  # (node, GPU or -1 for the machine) -> outages
    opened: dict[tuple[int, int], int] = {}  # -> position of the change that began them
    for position, (line, change) in enumerate(found):
        for device in _devices(change):
            now = count.get(device, 0)
            if change.down and not now:
                opened[device] = position
            if not change.down and not now:
                raise DataError(
                    "comes up without having been down",
                    file=file,
                    row=line,
                    column="gpus" if change.mask else "node",
                    value=device[1] if change.mask else change.node,
                    expected="an earlier row that takes the same GPUs (or machine) down",
                )
            count[device] = now + (1 if change.down else -1)
    forever: dict[int, int] = {}
    for device, still in count.items():
        if still:
            position = opened[device]
            forever[position] = forever.get(position, 0) | 1 << max(0, device[1])
    return tuple(
        replace(change, forever=forever.get(position, 0))
        for position, (_, change) in enumerate(found)
    )


def _devices(change: Change) -> Iterator[tuple[int, int]]:
    if not change.mask:
        yield change.node, -1
    for gpu in range(change.mask.bit_length()):
        if change.mask >> gpu & 1:
            yield change.node, gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Mtbf:
    """Exponential times to failure and to repair, in seconds; None: that kind never fails.

    A node's failure takes the whole machine, a GPU's that GPU only. Draws are made in the order
    of the failures, from the generator given alone, so they do not depend on the policy.
    """

    node_mtbf_s: float | None = None
    node_mttr_s: float = 3600.0
    gpu_mtbf_s: float | None = None
    gpu_mttr_s: float = 3600.0

    def describe(self) -> dict[str, object]:
        """The mean times."""
        return {"source": "mtbf", **asdict(self)}

    def __post_init__(self) -> None:
        for name in ("node_mtbf_s", "node_mttr_s", "gpu_mtbf_s", "gpu_mttr_s"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float("inf"):
                raise UsageError(f"failures: {name} is {value}; expected seconds above 0")

    def changes(
        self, spec: ClusterSpec, rng: np.random.Generator, start_s: float
    ) -> Iterator[Change]:
        """Yield failures and repairs without end."""
        parts: list[tuple[int, int, float, float]] = []  # node, mask, mean up, mean down
        for node, machine in enumerate(spec.nodes):
            if self.node_mtbf_s is not None:
                parts.append((node, 0, self.node_mtbf_s, self.node_mttr_s))
            if self.gpu_mtbf_s is not None:
                parts.extend(
                    (node, 1 << gpu, self.gpu_mtbf_s, self.gpu_mttr_s)
                    for gpu in range(machine.num_gpus)
                )
        if not parts:
            return
        first = rng.exponential([up for _, _, up, _ in parts])
        heap = [(start_s + wait, part, True) for part, wait in enumerate(first.tolist())]
        heapify(heap)
        while True:
            time_s, part, down = heap[0]
            node, mask, mean_up, mean_down = parts[part]
            yield Change(
                time_s=time_s,
                node=node,
                mask=mask,
                down=down,
                detail="failure" if down else "repair",
            )
            wait = float(rng.exponential(mean_down if down else mean_up))
            heapreplace(heap, (time_s + wait, part, not down))


@dataclass(frozen=True, slots=True, kw_only=True)
class Daily:
    """Nodes that are away from ``from_s`` to ``to_s`` of every period, on the trace's clock.

    ``nodes``: names of the inventory, or patterns with ``*`` and ``?``. ``from_s`` and ``to_s``
    are seconds from the period's start; ``to_s`` before ``from_s`` means over midnight.
    """

    nodes: tuple[str, ...]
    from_s: float
    to_s: float
    period_s: float = 86_400.0

    def describe(self) -> dict[str, object]:
        """Who is away, and when."""
        return {"source": "daily", **asdict(self)}

    def __post_init__(self) -> None:
        if not 0.0 < self.period_s < float("inf"):
            raise UsageError(f"timetable: period_s is {self.period_s}; expected seconds above 0")
        for name in ("from_s", "to_s"):
            if not 0.0 <= getattr(self, name) <= self.period_s:
                raise UsageError(
                    f"timetable: {name} is {getattr(self, name)};"
                    f" expected seconds of the period, 0 to {self.period_s:.12g}"
                )
        if self.from_s % self.period_s == self.to_s % self.period_s:
            raise UsageError("timetable: from_s and to_s are the same instant of the period")

    def changes(
        self, spec: ClusterSpec, rng: np.random.Generator, start_s: float
    ) -> Iterator[Change]:
        """Yield departures and returns without end; raises UsageError for unknown nodes."""
        away: list[int] = []
        for pattern in self.nodes:
            matching = [i for i, m in enumerate(spec.nodes) if fnmatchcase(m.name, pattern)]
            if not matching:
                near = did_you_mean(pattern, [m.name for m in spec.nodes[:1000]])
                raise UsageError(f"timetable: no node matches {pattern!r}; {near}")
            away += matching
        away = sorted(set(away))
        length = (self.to_s - self.from_s) % self.period_s
        turn = math.floor(start_s / self.period_s) - 1
        while away:
            begin = turn * self.period_s + self.from_s
            turn += 1
            if begin + length <= start_s:
                continue
            for time_s, down in ((begin, True), (begin + length, False)):
                detail = "taken away by timetable" if down else "given back by timetable"
                for node in away:
                    yield Change(time_s=time_s, node=node, mask=0, down=down, detail=detail)
