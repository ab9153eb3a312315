"""A real online service beside real jobs: LONGER answers on the lanes that it was lent, under load.

What the service needs is a demand over time, told to the driver as in the simulated world
(``policies.services``); who gives way is the policy's. Here is the rest: as soon as training has
left a lane that was lent, a server process (``executor.answering``) answers there, bound to the
lane's device, cores and kernels; it ends when the lane is given back, and training waits until it
has. As many as the demand may need are loaded before time begins, and again after one has ended, so
that a lane that is lent answers soon (``server_start_s`` of the record). A process of its own
(``executor.asking``) asks the servers, at a rate that follows the demand: so many requests per
second for every lane in demand, whether or not it got the lane.

The driver's thread never waits for these processes: it looks at them a few times a second. They end
with it, however it ends.

Leaves out: taking a lane by force. A job leaves at its next step boundary, and a wait that is
longer than it may be is recorded.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Protocol

from executor.devices import DeviceLane
from executor.errors import ExecutorError
from executor.past import Past
from executor.pool import Place
from policies.services import Service, demand_of
from traces.errors import UsageError

NAME = "\0serving"
"""Under which lanes are held (``Agent.hold``); no job is called so."""

_LEAVE_S = 3.0
_START_S = 120.0
_MOST_STARTS = 3
_TAIL = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A service of an execution: its demand, what it serves, and how it is asked.

    ``folder``: of published versions (``tandem train --publish``); None: LONGER at size ``tiny``
    with initial weights. ``rate``: requests per second for every lane in demand.
    Raises :class:`UsageError` for a rate that cannot be, and where the extra ``serve`` is missing.
    """

    service: Service
    folder: Path | None = None
    rate: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1000:
            raise UsageError(f"serving: {self.rate} requests per second; expected 0 to 1000")
        for module in ("fastapi", "uvicorn"):
            if find_spec(module) is None:
                raise UsageError(
                    f"serving needs {module}; expected the extra: pip install 'tandem-lab[serve]'"
                )

    def describe(self) -> dict[str, Any]:
        """What the record, and a later execution that goes on, are told."""
        folder = None if self.folder is None else str(self.folder)
        return self.service.describe() | {"versions": folder, "rate": self.rate}

    @classmethod
    def of(cls, described: Sequence[Mapping[str, Any]]) -> Serving | None:
        """Make it again from what :meth:`describe` said, if there was one.

        Raises :class:`UsageError` for a demand that was given as an object.
        """
        if not described:
            return None
        (one,) = described
        if not isinstance(one["demand"], str):
            raise UsageError("serving: the demand was given as an object; it cannot be made again")
        terms = {name: one[name] for name in ("gpu_type", "give_way_s", "linger_s")}
        service = Service(demand=demand_of(one["demand"]), text=one["demand"], **terms)
        folder = None if one["versions"] is None else Path(one["versions"])
        return cls(service=service, folder=folder, rate=one["rate"])


class Lanes(Protocol):
    """What is needed of an agent."""

    def hold(self, gpu: Place, name: str) -> bool:
        """Line up for a lane; whether it is free now."""
        ...

    def release(self, gpu: Place, name: str) -> None:
        """Give it back."""
        ...


@dataclass(slots=True)
class Instance:
    """A lane of the service, and the server on it once training has left."""

    lane: DeviceLane
    process: subprocess.Popen[bytes] | None = None
    url: str | None = None
    since_s: float = 0.0
    kill_s: float | None = None
    starts: int = 0
    said: bytes = b""


@dataclass(slots=True)
class Tally:
    """What came of the requests: rows by time, and all latencies, seconds."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    load_s: list[float] = field(default_factory=list)

    def add(self, window: Mapping[str, Any], time_s: float, **state: int) -> None:
        """Add what the load generator said of one second."""
        latencies = sorted(window["latencies_s"])
        self.latencies_s += latencies
        counts = {name: int(window.get(name, 0)) for name in COUNTS}
        self.rows.append(
            {
                "time_s": time_s,
                **state,
                **counts,
                "answered": len(latencies),
                "p50_ms": _percentile_ms(latencies, 50),
                "p99_ms": _percentile_ms(latencies, 99),
            }
        )

    def total(self) -> dict[str, Any]:
        """The record's field ``serving``."""
        ordered = sorted(self.latencies_s)
        sums = {name: sum(row[name] for row in self.rows) for name in (*COUNTS, "answered")}
        return sums | {
            "p50_ms": _percentile_ms(ordered, 50),
            "p99_ms": _percentile_ms(ordered, 99),
            "server_start_s": [round(seconds, 3) for seconds in self.load_s],
        }


COUNTS = ("requests", "refused", "failed", "unserved")


class Online:
    """The service of one execution. Use as a context manager: no process is left behind.

    ``freed(place)`` is called when training has left a lane that was lent, ``kept(time_s, line)``
    with what goes into a journal.
    """

    def __init__(
        self, serving: Serving, lanes: Lanes, places: Mapping[Place, DeviceLane], folder: Path
    ) -> None:
        self.serving = serving
        self.tally = Tally()
        self.instances: dict[Place, Instance] = {}
        self.freed: Callable[[Place], None] = lambda _: None
        self.kept: Callable[[float, dict[str, Any]], None] = lambda *_: None
        self._lanes, self._places, self._folder = lanes, places, folder
        self._asking: subprocess.Popen[bytes] | None = None
        self._spares: list[tuple[dict[str, str], subprocess.Popen[bytes]]] = []
        self._said = b""
        self._ordered: dict[str, Any] | None = None
        self._errors = (folder / "serving.log").open("ab")

    def __enter__(self) -> Online:
        lanes = [x for x in self._places.values() if x.gpu_type == self.serving.service.gpu_type]
        for lane in lanes[: self.serving.service.peak[0]]:
            self._load(lane)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, kept: Callable[[float, dict[str, Any]], None], past: Past) -> None:
        """Go on from what an earlier execution was asked; ``kept`` is told of what comes."""
        self.kept = kept
        for line in past.windows:
            self.tally.add(line["window"], line["time_s"], **line["state"])

    def pids(self) -> Iterator[tuple[Place, int]]:
        """The server processes, by lane."""
        for place, instance in self.instances.items():
            if instance.process is not None:
                yield place, instance.process.pid

    def look(self, now_s: float, held: Mapping[Place, bool], gpus: int, origin_s: float) -> None:
        """Start and end servers, and take in what was said; never waits.

        ``now_s``: of the run, whose origin on the monotonic clock is ``origin_s``. ``held``: the
        service's lanes, and whether it needs each now. ``gpus``: its demand. Raises ExecutorError
        if a server cannot be started, or does not answer.
        """
        for place in held:
            if place not in self.instances:
                self.instances[place] = Instance(lane=self._places[place])
        for place, instance in list(self.instances.items()):
            self._see_to(place, instance, wanted=place in held)
        urls = [
            one.url
            for place, one in self.instances.items()
            if one.url is not None and one.kill_s is None and held.get(place)
        ]
        self._order({"rate": gpus * self.serving.rate, "urls": urls})
        for window in self._windows():
            time_s = max(0.0, min(now_s, window["at_s"] - origin_s))
            state = {
                "demand_gpus": gpus,
                "lent_gpus": sum(held.values()),
                "servers": len(urls),
            }
            self.tally.add(window, time_s, **state)
            self.kept(time_s, {"window": window, "state": state})

    def close(self) -> None:
        """End all processes; none is left when this returns."""
        processes = [one.process for one in self.instances.values() if one.process is not None]
        processes += [process for _, process in self._spares]
        if self._asking is not None:
            processes.append(self._asking)
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
            _close(process)
        self._spares.clear()
        for place in self.instances:
            self._lanes.release(place, NAME)
        self.instances.clear()
        self._asking = None
        self._errors.close()

    # Servers

    def _see_to(self, place: Place, instance: Instance, *, wanted: bool) -> None:
        """Bring one lane a step further to what it should be."""
        process = instance.process
        if process is None:
            if not wanted:
                self._leave(place)
            elif self._lanes.hold(place, NAME):
                self.freed(place)
                self._start(instance)
        elif instance.kill_s is not None:
            if process.poll() is not None:
                _close(process)
                self._leave(place)
                self._load(instance.lane)
            elif time.monotonic() > instance.kill_s:
                process.kill()
        elif not wanted:
            instance.kill_s = time.monotonic() + _LEAVE_S
            process.send_signal(signal.SIGKILL if instance.url is None else signal.SIGTERM)
        elif process.poll() is not None:
            self._again(instance, f"the server ended with code {process.returncode}")
        elif instance.url is None:
            self._listen(instance)

    def _leave(self, place: Place) -> None:
        del self.instances[place]
        self._lanes.release(place, NAME)

    def _load(self, lane: DeviceLane) -> None:
        """Have a server loaded that is for no lane yet, but for the kernels of this one."""
        environ = lane.environ()
        self._spares.append((environ, _child("executor.answering", self._errors, environ)))

    def _spare(self, environ: dict[str, str]) -> subprocess.Popen[bytes]:
        """Take one that was loaded so, or a new one."""
        for number, (loaded, process) in enumerate(self._spares):
            if loaded == environ and process.poll() is None:
                del self._spares[number]
                return process
        return _child("executor.answering", self._errors, environ)

    def _start(self, instance: Instance) -> None:
        lane = instance.lane
        asked = {
            "folder": str(self._folder if self.serving.folder is None else self.serving.folder),
            "device": lane.device,
            "threads": lane.threads,
            "cpus": list(lane.cpus),
        }
        instance.process = self._spare(lane.environ())
        with contextlib.suppress(BrokenPipeError):  # it has died: that is noticed at the next look
            _tell(instance.process, asked)
        instance.since_s = time.monotonic()
        instance.starts += 1
        instance.said, instance.url = b"", None

    def _listen(self, instance: Instance) -> None:
        process = instance.process
        assert process is not None
        assert process.stdout is not None
        instance.said += _read(process.stdout)
        if b"\n" in instance.said:
            instance.url = json.loads(instance.said.partition(b"\n")[0])["url"]
            self.tally.load_s.append(time.monotonic() - instance.since_s)
        elif time.monotonic() - instance.since_s > _START_S:
            process.kill()
            process.wait()
            self._again(instance, f"the server did not answer within {_START_S:g} s")

    def _again(self, instance: Instance, problem: str) -> None:
        """A server is gone: start it anew, a few times."""
        assert instance.process is not None
        _close(instance.process)
        if instance.starts >= _MOST_STARTS:
            said = Path(self._errors.name).read_text(encoding="utf-8", errors="replace")
            last = " ".join(said.split())[-_TAIL:]
            raise ExecutorError(
                problem,
                where=f"serving on lane {instance.lane.name}",
                value=last or None,
                expected="a folder of versions that `tandem serve` can serve",
            )
        self._start(instance)

    # The load

    def _order(self, order: dict[str, Any]) -> None:
        """Tell the load generator what to do from now on, if that is something new."""
        if self._asking is None:
            self._asking = _child("executor.asking", self._errors, {})
        elif self._asking.poll() is not None:
            raise ExecutorError(
                "the load generator ended", where="serving", value=self._asking.returncode
            )
        if order != self._ordered:
            self._ordered = order
            _tell(self._asking, order)

    def _windows(self) -> Iterator[dict[str, Any]]:
        assert self._asking is not None
        assert self._asking.stdout is not None
        self._said += _read(self._asking.stdout)
        while b"\n" in self._said:
            line, _, self._said = self._said.partition(b"\n")
            yield json.loads(line)


@contextlib.contextmanager
def online(
    serving: Serving | None, lanes: Lanes, places: Mapping[Place, DeviceLane]
) -> Iterator[Online | None]:
    """Give the service of an execution, ready to begin; None if there is none."""
    if serving is None:
        yield None
        return
    with TemporaryDirectory(prefix="tandem-serving-") as folder:
        if serving.folder is None:
            _publish_tiny(Path(folder))
        else:
            _check_versions(serving.folder)
        with Online(serving, lanes, places, Path(folder)) as service:
            yield service


def _publish_tiny(folder: Path) -> None:
    """Publish LONGER at size tiny, with initial weights, as a version."""
    from models.config import TINY  # noqa: PLC0415  these import torch
    from models.longer.network import Longer  # noqa: PLC0415
    from models.serve.version import publish_state  # noqa: PLC0415
    from models.sparse.table import EmbeddingTable  # noqa: PLC0415
    from models.sparse.tableset import TableSet  # noqa: PLC0415

    names = ("item", "category", "user", "cross")
    tables = TableSet(EmbeddingTable(n, getattr(TINY, f"{n}_dim"), 0) for n in names)
    publish_state(folder, Longer(TINY, seed=0).eval(), tables)


def _check_versions(folder: Path) -> None:
    """Open the newest version now: what is wrong with it is known before anything runs."""
    from models.serve.version import Version  # noqa: PLC0415  it imports torch

    Version.open(folder)


def _child(module: str, errors: IO[bytes], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start one of our modules, apart from the terminal's signals; it ends with its stdin."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **environ}
    process = subprocess.Popen(  # noqa: S603  our own interpreter and module
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environ,
        start_new_session=True,
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    return process


def _tell(process: subprocess.Popen[bytes], order: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write((json.dumps(order) + "\n").encode())
    process.stdin.flush()


def _read(pipe: IO[bytes]) -> bytes:
    """What is there, without waiting."""
    if not select.select([pipe], [], [], 0.0)[0]:
        return b""
    return os.read(pipe.fileno(), 1 << 16)


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _percentile_ms(ordered: list[float], percent: int) -> float:
    """Nearest rank, in milliseconds; NaN of none."""
    if not ordered:
        return math.nan
    return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1] * 1e3
