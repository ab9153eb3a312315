"""A worker: holds one device of at most one job, and does what the agent says.

A worker process is forked by ``executor.zygote``, whose environment was chosen before torch was
imported, and speaks over an inherited pipe. The same loop runs as a thread, for tests of the
protocol: the pipe and the process group are the same, only a kill is gentler.

Two threads: one reads the pipe (``executor.mailbox``), the other, here, does requests and steps. A
worker does not outlive its agent: the end of the pipe ends the process at once, and the kernel
sends SIGKILL when the parent dies (PR_SET_PDEATHSIG), for the case that the process is stopped.
What was being written then lies under a temporary name.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import torch

from executor import checkpoint, transfer
from executor import messages as m
from executor.errors import ExecutorError, GarbageError, PeerLostError
from executor.exchange import Exchange
from executor.faults import Fault, KilledError, Probe
from executor.hashing import context_digests, digests
from executor.layout import Layout
from executor.levels import configure
from executor.mailbox import EXIT_ORPHAN, Mailbox
from executor.operators import digests as battery_digests
from executor.reduce import Order, order_of
from executor.replica import Replica
from executor.ring import arrival

_PR_SET_PDEATHSIG = 1


class Worker:
    """The loop of one worker. ``as_process``: whether its end may end the process."""

    def __init__(self, pipe: Connection, *, as_process: bool) -> None:
        self._mail = Mailbox(pipe, as_process=as_process, doing=self._doing, on_kill=self._release)
        self._as_process = as_process
        self._generation = -1
        self._phase = ("idle", time.monotonic())
        self._job: m.Attach | None = None
        self._identity: dict[str, Any] = {}
        self._replica: Replica | None = None
        self._gathered: dict[str, Any] | None = None
        self._do: dict[type, Callable[[Any], Any]] = {
            m.Attach: self._attach,
            m.Move: self._move,
            m.Restore: self._restore,
            m.Reshard: self._reshard,
            m.Forward: self._forward,
            m.Configure: self._configure,
            m.Survey: self._survey,
            m.Digest: self._digest,
            m.Save: self._save,
            m.Detach: self._detach,
        }

    def run(self) -> None:
        """Work until told to quit, or until the agent is gone."""
        self._mail.open()
        try:
            while (order := self._mail.next()) is not None:
                if isinstance(order, m.Run):
                    self._steps(order)
                elif isinstance(order, m.Open):
                    self._open(order)
                else:
                    self._request(order)
                self._now("idle")
        except KilledError:
            pass
        finally:
            self._mail.hang_up()
            self._drop()

    def kill(self) -> None:
        """End a worker that is a thread: it says and does nothing more."""
        self._mail.kill()

    def _now(self, phase: str) -> None:
        self._phase = (phase, time.monotonic())
        if self._replica is not None:
            self._replica.phase = phase

    def _doing(self) -> tuple[str, float]:
        """What is being done, and since when; inside a step the replica knows."""
        replica = self._replica
        return self._phase if replica is None else (replica.phase, replica.phase_since_s)

    def _open(self, order: m.Open) -> None:
        """Use the device once: on a GPU that makes a context, and loads the library of products.

        If it cannot be used, the job that wants it is told so when it comes.
        """
        with suppress(RuntimeError):
            matrix = torch.ones(8, 8, device=order.lane.device)
            (matrix @ matrix).sum().item()

    # Requests.

    def _request(self, request: m.Request) -> None:
        try:
            value = self._do[type(request)](request)
        except PeerLostError as error:
            self._release()
            self._mail.say(m.Reply(serial=request.serial, error=str(error), lost=True))
        except Exception as error:  # noqa: BLE001  a user's task may raise anything
            self._release()
            self._mail.say(m.Reply(serial=request.serial, error=_text(error)))
        else:
            self._mail.say(m.Reply(serial=request.serial, value=value))

    def _attach(self, request: m.Attach) -> dict[str, Any]:
        self._drop()
        self._now("attach")
        if self._as_process:
            if request.agreement is not None:
                configure(request.agreement, request.lane)
            if request.lane.cpus:
                os.sched_setaffinity(0, request.lane.cpus)
        # Workers that are threads all run the kernels of this process: there is nothing to compare.
        asked = request.battery and self._as_process
        battery = battery_digests(request.lane.device) if asked else None
        task = request.task.build(request.lane.device)
        if request.order is None:
            ring = request.reduction == "ring"
            order = order_of(
                task.parameters(),
                task.num_workers,
                request.bucket_bytes,
                arrived=arrival(request.task.build(request.lane.device)) if ring else None,
            )
        else:
            order = Order.from_json(request.order)
        self._job = request
        self._identity = {
            "job_id": request.job_id,
            "task": request.task.to_json(),
            "num_workers": task.num_workers,
            "order": order.to_json(),
            "agreement": None if request.agreement is None else request.agreement.to_json(),
        }
        self._replica = Replica(
            task,
            order,
            audit_every=request.habits.audit_every,
            overlap=request.habits.overlap,
            on_host=request.habits.gradients == "host",
            own_process=self._as_process,
            fetch_ahead=request.habits.fetch_ahead,
            slowdown=request.lane.slowdown,
        )
        return self._identity | {"battery": battery}

    def _move(self, request: m.Move) -> int:
        """Newcomers take parameters and optimizer state from a peer."""
        replica, _ = self._attached()
        self._begin(request.generation, request.faults)
        exchange = self._meet(request.meeting)
        try:
            self._take_part(request, exchange)
        finally:
            exchange.close()
        return replica.step

    def _take_part(self, request: m.Move, exchange: Exchange, *, rows: bool = True) -> None:
        replica, _ = self._attached()
        if request.source is None:
            replica.probe("transfer", request.step, replica.ranks)
        else:
            replica.probe("arrival", request.step, range(*request.ranks))
        if request.targets:
            state = replica.task.state() if rows else replica.state_without_rows()
            transfer.send_state(exchange, request.targets, replica.step, state)
        if request.source is not None:
            replica.adopt(*transfer.receive_state(exchange, request.source))

    def _reshard(self, request: m.Reshard) -> int:
        """Take part in a move of rows; for a file, put all state together if we are to have it."""
        replica, _ = self._attached()
        self._begin(request.move.generation, request.move.faults)
        exchange = self._meet(request.move.meeting)
        try:
            self._take_part(request.move, exchange, rows=False)
            if request.into is not None:
                return replica.reshuffle(exchange, request.plan, request.holding, request.into)
            state = replica.gathered(exchange, request.plan, request.holding)
            self._gathered = state if request.plan.wanted[exchange.index] else None
            return exchange.sent_bytes
        finally:
            exchange.close()

    def _forward(self, request: m.Forward) -> int:
        replica, _ = self._attached()
        replica.forward(request.step)
        return replica.step

    def _restore(self, request: m.Restore) -> int:
        replica, _ = self._attached()
        held = checkpoint.read(request.path, self._identity)
        replica.adopt(held.step, held.state)
        return replica.step

    def _configure(self, request: m.Configure) -> int:
        replica, _ = self._attached()
        self._begin(request.generation, request.faults)
        layout = Layout(
            blocks=tuple(range(low, high) for low, high in request.blocks),
            index=request.meeting.index,
            shards=request.shards,
        )
        replica.probe("configure", request.step, layout.own)
        if replica.step != request.step or not replica.whole:
            raise ExecutorError(
                "the replica is not where it should be",
                value=replica.step,
                expected=f"step {request.step}",
            )
        exchange = self._meet(request.meeting)
        contexts: Any = request.contexts
        try:
            if contexts is None:
                contexts = replica.first_contexts([*layout.own, *layout.copied])
            replica.configure(
                layout, exchange, contexts, holding=request.holding, number=request.number
            )
        except BaseException:
            exchange.close()
            raise
        return replica.step

    def _begin(self, generation: int, faults: Iterable[Fault]) -> None:
        replica, _ = self._attached()
        replica.release()
        self._now("configure")
        self._generation = generation
        replica.probe = Probe(
            faults, report=self._report, killed=self._mail.killed, as_process=self._as_process
        )

    def _meet(self, meeting: m.Meeting) -> Exchange:
        _, job = self._attached()
        generation = self._generation
        self._now("meet")
        return Exchange(
            meeting.address,
            meeting.prefix,
            meeting.index,
            meeting.size,
            # Whoever hangs is found by the agent; this is for the case that there is none.
            timeout_s=4 * job.habits.deadline_s + 10,
            device=meeting.device,
            abandoned=lambda: self._mail.killed.is_set() or self._mail.abandoned >= generation,
        )

    def _survey(self, _: m.Survey) -> m.Surveyed:
        replica, _job = self._attached()
        replica.release()
        return m.Surveyed(
            step=replica.step if replica.whole else None,
            contexts=replica.held_contexts(),
            last=replica.last,
            rows=replica.held_rows(),
            prepared=replica.prepared,
        )

    def _digest(self, _: m.Digest) -> dict[str, str]:
        replica, _job = self._attached()
        return digests(replica.whole_state()) | context_digests(replica.own_contexts())

    def _save(self, request: m.Save) -> str:
        replica, _job = self._attached()
        state, self._gathered = self._gathered, None
        return str(
            self._write(dict(request.contexts), replica.task.state() if state is None else state)
        )

    def _detach(self, _: m.Detach) -> None:
        self._drop()

    def _attached(self) -> tuple[Replica, m.Attach]:
        if self._replica is None or self._job is None:
            raise ExecutorError("the worker has no job", expected="attach first")
        return self._replica, self._job

    def _drop(self) -> None:
        replica, self._replica, self._job = self._replica, None, None
        self._gathered = None
        if replica is not None:
            replica.close()

    def _release(self) -> None:
        """Close the exchange, so that neither our peers wait for us nor we for them."""
        replica = self._replica
        if replica is not None:
            replica.release()

    def _report(self, fault: Fault) -> None:
        self._mail.say(m.Fired(fault=fault))

    # Steps.

    def _steps(self, order: m.Run) -> None:
        """Do steps until the order's end, a wish to pause, or a break."""
        if order.generation != self._generation:
            return
        replica, job = self._attached()
        every = job.habits.checkpoint_every if job.habits.folder else 0

        def stop() -> bool:
            return self._mail.paused_run >= order.number

        try:
            while replica.step < order.until:
                due = every > 0 and (replica.step + 1) % every == 0
                report = replica.do_step(stop=stop, gather_contexts=due)
                digest_every = job.habits.digest_every
                told = digest_every > 0 and report.step % digest_every == 0
                # With sharded tables all devices put it together, and only the first has it.
                state = replica.whole_state() if due or told else {}
                self._tell(replica, report, state if told else None)
                if due and replica.is_first:
                    self._periodic(replica, state)
                if report.stop:
                    break
        except Exception as error:  # noqa: BLE001  a user's task may raise anything
            self._broke(replica, error)
            return
        self._mail.say(m.Paused(generation=self._generation, step=replica.step))

    def _tell(self, replica: Replica, report: Any, state: Mapping[str, Any] | None) -> None:
        found: dict[str, str] = {}
        if state is not None:
            found = digests(state) | context_digests(replica.own_contexts())
        if found or replica.is_first:
            self._mail.say(m.Progress(generation=self._generation, report=report, digests=found))

    def _broke(self, replica: Replica, error: Exception) -> None:
        """Leave the generation at once, so that nobody waits for us, and say why."""
        culprits: tuple[int, ...] = ()
        kind, refused = "failed", False
        if isinstance(error, PeerLostError):
            kind = "lost"
        elif isinstance(error, GarbageError):
            kind, culprits = "garbage", error.culprits
        elif isinstance(error, ValueError) and replica.phase == "apply":
            refused = True
            culprits = (replica.index,) if replica.is_source_of_garbage() else ()
        else:
            culprits = (replica.index,)
        step = replica.step
        replica.release()
        self._mail.say(
            m.Broke(
                generation=self._generation,
                step=step,
                kind=kind,
                text=_text(error),
                culprits=culprits,
                refused=refused,
            )
        )

    def _periodic(self, replica: Replica, state: Mapping[str, Any]) -> None:
        """Write the checkpoint that is due; a disk that refuses does not stop the job."""
        contexts = replica.held_contexts()[replica.step]
        try:
            path = self._write(contexts, state)
        except ExecutorError as error:
            self._mail.say(m.Saved(step=replica.step, path=None, error=str(error)))
        else:
            self._mail.say(m.Saved(step=replica.step, path=str(path)))

    def _write(self, contexts: dict[int, bytes], state: Mapping[str, Any]) -> Path:
        replica, job = self._attached()
        if job.habits.folder is None:
            raise ExecutorError("the job has no folder for checkpoints", expected="a folder")
        self._now("write")
        probe = replica.probe
        return checkpoint.write(
            job.habits.folder,
            checkpoint.Checkpoint(
                step=replica.step,
                identity=self._identity,
                state=state,
                contexts=contexts,
            ),
            keep=job.habits.keep,
            before_rename=lambda: probe("checkpoint", replica.step, replica.ranks),
        )


def _text(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the thread that started this process ends."""
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(EXIT_ORPHAN)


def prepare() -> None:
    """Import what tasks are made of, and set what every worker process has."""
    import torch._dynamo  # noqa: PLC0415  optimizers import it when the first one is made

    import models.data.generator  # noqa: F401, PLC0415

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.set_deterministic_debug_mode("error")


def be(descriptor: int) -> NoReturn:
    """Be a worker process on an inherited pipe, and end with it."""
    code = 1
    try:
        die_with_parent()
        Worker(Connection(descriptor), as_process=True).run()
        code = 0
    finally:
        # Not by way of the interpreter's end, which takes a second with torch in memory.
        sys.stderr.flush()
        os._exit(code)
