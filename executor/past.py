"""What an earlier execution did, from its journal: the log of the one that goes on is whole.

:class:`KeptLog` writes everything the driver records twice: to the run's log, and to the journal, a
line each, at once. :class:`Past` reads such lines: it writes them into the log of the execution
that goes on, on the same axis of time, and says what became of each job by then.

What a crash left open is closed at the last instant of the journal: a job that held lanes failed
there (it lost them, and what it did since its last checkpoint, and waits again); lanes that a
service had come back. A job that was stopped with a checkpoint, by Ctrl-C, was preempted.

Leaves out: what was decided and not yet written when the process was killed, at most an instant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING, Any

from executor import events as e
from executor.utilisation import Reading
from policies.books import IS_FAILED, IS_FINISHED, IS_WAITING, NAN, Outcomes, Recorder
from traces import Allocation, WorkerMap, Workload
from traces.runlog import END_REASONS, EVENT_CODE

if TYPE_CHECKING:
    from executor.cluster import LocalCluster
    from executor.journal import Journal

Line = Mapping[str, Any]

SUBMIT, START, PREEMPT, FAIL = (EVENT_CODE[k] for k in ("submit", "start", "preempt", "fail"))
FINISH, GIVE_UP, RESIZE, MIGRATE = (
    EVENT_CODE[k] for k in ("finish", "give_up", "resize", "migrate")
)
LENT, GIVEN_BACK = EVENT_CODE["device_lent"], EVENT_CODE["device_given_back"]
BEGINS = {START, MIGRATE, RESIZE}
END_PREEMPT, END_FAIL, END_OPEN = (END_REASONS.index(r) for r in ("preempt", "fail", "open"))
_COUNTED = {  # event -> the field of Counts, and the column of Outcomes if it has one
    FINISH: ("finished", None),
    GIVE_UP: ("given_up", None),
    PREEMPT: ("preemptions", "preemptions"),
    MIGRATE: ("migrations", "migrations"),
    RESIZE: ("resizes", "resizes"),
    FAIL: ("failures", "failures"),
}
_SUMS = (
    "queueing_s",
    "preemptions",
    "migrations",
    "resizes",
    "failures",
    "service_gpu_s",
    "overhead_gpu_s",
    "lost_gpu_s",
)


class KeptLog:
    """A recorder that also keeps what it is told in the journal.

    ``ranks``: the rank in the whole workload of each job that the driver has. ``submitted``: those
    (in the whole) whose submission is in the log already.
    """

    def __init__(
        self,
        log: Recorder,
        journal: Journal,
        cluster: LocalCluster,
        ranks: Sequence[int],
        submitted: set[int],
    ) -> None:
        self._log, self._journal, self._cluster = log, journal, cluster
        self._ranks, self._submitted = ranks, submitted

    def event(self, time_s: float, code: int, rank: int, detail: str | None = None) -> None:
        """Record a job event; with one that begins a stay, on which lanes."""
        whole = self._ranks[rank]
        if code == SUBMIT and whole in self._submitted:
            return
        line: dict[str, Any] = {"event": [time_s, code, whole, detail]}
        if code in BEGINS:
            job = self._cluster.stays[rank].job
            assert job.allocation is not None
            line["stay"] = [*job.allocation, job.worker_map]
        if code == FINISH:
            self._journal.finished(self._cluster.finished_by(rank), time_s)
        self._journal.keep(time_s, line)
        self._log.event(time_s, code, whole, detail)

    def device_event(
        self, time_s: float, code: int, node: int, mask: int, detail: str | None = None
    ) -> None:
        """Record a device event."""
        self._journal.keep(time_s, {"device": [time_s, code, node, mask, detail]})
        self._log.device_event(time_s, code, node, mask, detail)

    def allocation(
        self,
        rank: int,
        allocation: Allocation,
        start_s: float,
        begin_s: float,
        end_s: float,
        rate: float,
        reason: int,
        workers: WorkerMap | None = None,
    ) -> None:
        """Record a stay that has ended."""
        whole = self._ranks[rank]
        row = [whole, allocation, start_s, begin_s, end_s, rate, reason, workers]
        self._journal.keep(end_s, {"allocation": row})
        self._log.allocation(whole, allocation, start_s, begin_s, end_s, rate, reason, workers)

    def loan(self, *row: Any) -> None:
        """Record a device that a service had; see ``RunWriter.loan``."""
        self._journal.keep(row[5], {"loan": row})
        self._log.loan(*row)

    def sample(self, *row: Any) -> None:
        """Record the state of one GPU type; see ``RunWriter.sample``."""
        self._journal.keep(row[0], {"sample": row})
        self._log.sample(*row)


class Past:
    """The lines of a journal, understood. Ranks are those of the whole workload.

    ``time_s``: the last instant. ``over``: jobs that ended, ``failed``: those for good, and why.
    ``finished``: with which bits jobs finished, by name. ``told``: how often a job
    was rescaled or recovered. ``readings``, ``windows``: of lanes, and of requests.
    """

    def __init__(self, lines: Sequence[Line] = ()) -> None:
        self.lines: list[Line] = []
        self.time_s = 0.0
        self.submitted: set[int] = set()
        self.over: set[int] = set()
        self.failed: dict[int, str] = {}
        self.finished: dict[str, e.Finished] = {}
        self.told: Counter[tuple[str, str]] = Counter()
        self.readings: list[Reading] = []
        self.windows: list[Line] = []
        self._open: dict[int, Line] = {}
        self._beat: Line = {}
        self._lent: dict[int, int] = {}
        self._returned_loans: set[tuple[Any, ...]] = set()
        for line in lines:
            self._take(line)

    def _take(self, line: Line) -> None:
        self.time_s = max(self.time_s, float(line["time_s"]))
        self.lines.append(line)
        if "event" in line:
            self._event(line)
        elif "device" in line:
            _, code, node, mask, _ = line["device"]
            if code == LENT:
                self._lent[node] = self._lent.get(node, 0) | mask
            elif code == GIVEN_BACK:
                self._lent[node] = self._lent.get(node, 0) & ~mask
        elif "allocation" in line:
            self._stayed(line)
        elif "loan" in line:
            pool, node, gpu, asked_s, *_ = line["loan"]
            self._returned_loans.add((pool, node, gpu, asked_s))
        elif "open" in line:
            self._beat = line
        elif "finished" in line:
            self._finished(line)
        elif "told" in line:
            self.told[line["told"], line["job"]] += 1
        elif "reading" in line:
            time_s, place, busy, memory_mib = line["reading"]
            reading = Reading(time_s=time_s, place=tuple(place), busy=busy, memory_mib=memory_mib)
            self.readings.append(reading)
        elif "window" in line:
            self.windows.append(line)

    def _finished(self, line: Line) -> None:
        job_id, time_s = line["finished"], line["time_s"]
        told = {name: line[name] for name in ("step", "loss", "digest")}
        self.finished[job_id] = e.Finished(job_id=job_id, at_s=time_s, **told)

    def _event(self, line: Line) -> None:
        _, code, rank, detail = line["event"]
        if code == SUBMIT:
            self.submitted.add(rank)
        elif code in BEGINS:
            self._open[rank] = line
        elif code in {FINISH, GIVE_UP}:
            self.over.add(rank)
            if code == GIVE_UP:
                self.failed[rank] = str(detail)

    def _stayed(self, line: Line) -> None:
        rank, allocation, start_s, begin_s, end_s, rate, reason, workers = line["allocation"]
        self._open.pop(rank, None)
        if reason == END_OPEN:  # that log ended, with a checkpoint; this one goes on
            row = [rank, allocation, start_s, begin_s, end_s, rate, END_PREEMPT, workers]
            self.lines[-1] = {"time_s": end_s, "allocation": row}
            self.lines.append({"time_s": end_s, "event": [end_s, PREEMPT, rank, None]})

    def close(self, kept_s: Callable[[int], float]) -> None:
        """Close what is open; ``kept_s``: a job's work in its last checkpoint."""
        now = self.time_s
        measured = self._beat.get("open", {})
        for rank, line in sorted(self._open.items()):
            shares, milli, workers = line["stay"]
            start_s, begin_s, rate, lost_s = line["event"][0], now, 0.0, 0.0
            known = measured.get(str(rank))
            if known is not None and known[0] == start_s:
                _, begin_s, rate, done_s = known
                lost_s = max(0.0, done_s - kept_s(rank))
            row = [rank, [shares, milli], start_s, min(begin_s, now), now, rate, END_FAIL, workers]
            self.lines.append({"time_s": now, "allocation": row, "lost_s": lost_s})
            self.lines.append({"time_s": now, "event": [now, FAIL, rank, None]})
        for node, mask in sorted(self._lent.items()):
            if mask:
                self.lines.append({"time_s": now, "device": [now, GIVEN_BACK, node, mask, None]})
        for pool, node, gpu, asked_s, ready_s, source in self._beat.get("loans", ()):
            if (pool, node, gpu, asked_s) not in self._returned_loans:
                known_s = ready_s if ready_s <= now else NAN
                row = [pool, node, gpu, asked_s, known_s, now, source]
                self.lines.append({"time_s": now, "loan": row})
        self._open.clear()
        self._lent.clear()
        self._beat = {}

    def write(self, log: Recorder) -> None:
        """Write the records into a log."""
        for line in self.lines:
            if "event" in line:
                log.event(*line["event"])
            elif "device" in line:
                log.device_event(*line["device"])
            elif "allocation" in line:
                rank, allocation, start_s, begin_s, end_s, rate, why, workers = line["allocation"]
                held, seats = _allocation(allocation), _workers(workers)
                log.allocation(rank, held, start_s, begin_s, end_s, rate, why, seats)
            elif "loan" in line:
                log.loan(*line["loan"])
            elif "sample" in line:
                log.sample(*line["sample"])

    def outcomes(self, workload: Workload) -> Outcomes:
        """What had become of each job of the whole workload by then."""
        found = Outcomes(len(workload))
        submit_s = workload.table["submit_s"].tolist()
        held_s, done_gpu_s = [0.0] * len(workload), [0.0] * len(workload)
        for line in self.lines:
            if "allocation" in line:
                rank, allocation, start_s, begin_s, end_s, rate, *_ = line["allocation"]
                gpus = _gpus(allocation)
                held_s[rank] += end_s - start_s
                done_gpu_s[rank] += max(0.0, end_s - begin_s) * rate * gpus
                found.service_gpu_s[rank] += (end_s - start_s) * gpus
                found.overhead_gpu_s[rank] += (min(begin_s, end_s) - start_s) * gpus
                found.lost_gpu_s[rank] += line.get("lost_s", 0.0) * gpus
            elif "event" in line:
                self._enter(found, line, submit_s)
        for rank in self.submitted:
            end_s = self.time_s if isnan(found.finish_s[rank]) else found.finish_s[rank]
            found.queueing_s[rank] = max(0.0, end_s - submit_s[rank] - held_s[rank])
        for rank in self.failed:
            found.finish_s[rank] = NAN
            found.lost_gpu_s[rank] = done_gpu_s[rank]
        return found

    @staticmethod
    def _enter(found: Outcomes, line: Line, submit_s: Sequence[float]) -> None:
        time_s, code, rank, _ = line["event"]
        if code == SUBMIT:
            found.status[rank] = IS_WAITING
        elif code == START and isnan(found.start_s[rank]):
            found.start_s[rank] = time_s
        elif code in {FINISH, GIVE_UP}:
            found.finish_s[rank] = time_s
            found.status[rank] = IS_FINISHED if code == FINISH else IS_FAILED
            if code == FINISH:
                found.jct_s[rank] = time_s - submit_s[rank]
        column = _COUNTED.get(code, ("", None))[1]
        if column is not None:
            getattr(found, column)[rank] += 1

    def counts(self) -> Counter[str]:
        """How much had happened, by field of ``policies.books.Counts``."""
        found = Counter(
            _COUNTED[line["event"][1]][0]
            for line in self.lines
            if "event" in line and line["event"][1] in _COUNTED
        )
        # Jobs that go on are submitted to the driver once more.
        found["submitted"] = len(self.submitted & self.over)
        return found


def joined(before: Outcomes, ranks: Sequence[int], since: Outcomes) -> Outcomes:
    """Add to ``before`` what became since of the jobs with these ranks."""
    for own, whole in enumerate(ranks):
        for name in _SUMS:
            column, more = getattr(before, name), getattr(since, name)[own]
            if not isnan(more):  # it was not submitted to the driver again
                column[whole] = more if isnan(column[whole]) else column[whole] + more
        if isnan(before.start_s[whole]):
            before.start_s[whole] = since.start_s[own]
        for name in ("finish_s", "jct_s", "status"):
            getattr(before, name)[whole] = getattr(since, name)[own]
    return before


def _allocation(value: Any) -> Allocation:
    shares, milli = value
    return Allocation(tuple((int(node), int(mask)) for node, mask in shares), int(milli))


def _workers(value: Any) -> WorkerMap | None:
    return None if value is None else WorkerMap.of([(n, g) for n, g in value[0]], value[1])


def _gpus(value: Any) -> float:
    allocation = _allocation(value)
    return allocation.num_gpus * allocation.gpu_milli / 1000
