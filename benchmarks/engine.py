"""What the engine costs: against plain training and DistributedDataParallel, and for each change.

    python benchmarks/engine.py [--out benchmarks/results/engine.json] [--quick]

Costs are ratios within one run, from pairs that alternate (ours, theirs, ours, ...), so that what
else the machine does hits both: the median of the pairs' ratios, and their quartiles. ``switch`` is
in CPU time, since both sides have one thread; ``ddp`` in CPU time and in wall time.

- ``switch``: 1, 4, 8 logical workers on one process, against plain accumulation of as many
  micro-batches and one update (EasyScale's Fig. 11: at most 2 %).
- ``ddp``: one logical worker on each of two processes, against DistributedDataParallel with two.
- ``bytes``: what a device sends in a step, over a ring all-reduce's 2 (p - 1) / p of the gradient.
- ``rescale``, ``recovery``: seconds from the command, or from the kill, to the end of the first
  step after it, with worker processes; ``move_over_copy``: those of a large model over the time
  that copying its state once in memory takes.
- ``memory``: peak resident memory of a worker process with 1 to 16 logical workers (Fig. 10).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch._dynamo  # optimizers import it; once, before the forks

from executor import events as e
from executor.agent import Agent
from executor.devices import DeviceLane
from executor.exchange import Exchange
from executor.job import JobSpec
from executor.messages import Habits
from executor.reduce import order_of
from executor.replica import Layout, Replica
from executor.workloads import dense_task, mlp_task, plain_loss, workload
from traces.workermap import WorkerMap

CPU = torch.device("cpu")
LANES = {(0, i): DeviceLane(name=f"cpu{i}", gpu_type="cpu") for i in range(4)}
SIZE = {"width": 384, "layers": 4, "batch": 256}


class Forked:
    """A child process that does ``work(n)`` when asked, and says how long it took."""

    def __init__(self, make: Callable[[], Callable[[int], None]]) -> None:
        self._pipe, theirs = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                _serve(theirs, make())
                code = 0
            finally:
                os._exit(code)
        theirs.close()

    def start(self, steps: int) -> None:
        """Ask for some steps."""
        self._pipe.send(steps)

    def seconds(self) -> tuple[float, float]:
        """Wait for them; return wall time and CPU time."""
        wall, cpu = self._pipe.recv()
        return float(wall), float(cpu)

    def end(self) -> None:
        """End the child."""
        self._pipe.send(0)
        os.waitpid(self.pid, 0)


def _serve(pipe: Connection, work: Callable[[int], None]) -> None:
    torch.set_num_threads(1)
    while steps := pipe.recv():
        began, spent = time.perf_counter(), time.process_time()
        work(steps)
        pipe.send((time.perf_counter() - began, time.process_time() - spent))


def accumulation(workers: int, name: str) -> Callable[[int], None]:
    """Plain training: as many micro-batches, gradients added, one update; no engine."""
    task = _task(name, workers)
    places = {rank: task.source.first(rank) for rank in range(workers)}

    def work(steps: int) -> None:
        task.module.train()
        for _ in range(steps):
            for rank in range(workers):
                batch, places[rank] = task.source.fetch(rank, places[rank])
                torch.autograd.backward(task.loss(task.module, batch) / workers)
            task.optimizer.step()
            task.optimizer.zero_grad()

    return work


def engine(workers: int, name: str) -> Callable[[int], None]:
    """The engine's step on one device."""
    task = _task(name, workers)
    replica = Replica(task, order_of(task.parameters(), workers), own_process=True)
    contexts = replica.first_contexts(range(workers))
    replica.configure(
        Layout(blocks=(range(workers),), index=0), Exchange(("", 0), "", 0, 1), contexts
    )

    def work(steps: int) -> None:
        for _ in range(steps):
            replica.do_step()

    return work


def _task(name: str, workers: int) -> Any:
    if name == "mlp":
        return mlp_task(num_workers=workers, seed=1, device=CPU, hidden=512, batch=256)
    return dense_task(num_workers=workers, seed=1, device=CPU, **SIZE)


def ddp(rank: int, world: int, store: str) -> Callable[[int], None]:
    """DistributedDataParallel, one process a rank."""
    import torch.distributed as dist  # noqa: PLC0415  only the reference needs it
    from torch.nn.parallel import DistributedDataParallel  # noqa: PLC0415

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    task = dense_task(num_workers=world, seed=1, device=CPU, **SIZE)
    module = DistributedDataParallel(task.module)
    place = [task.source.first(rank)]

    def work(steps: int) -> None:
        for _ in range(steps):
            batch, place[0] = task.source.fetch(rank, place[0])
            torch.autograd.backward(plain_loss(module, batch))
            task.optimizer.step()
            task.optimizer.zero_grad()
        dist.barrier()

    return work


def ratios(ours: Callable[[], float], theirs: Callable[[], float], pairs: int) -> dict[str, Any]:
    """Alternate, and return the median ratio with its quartiles."""
    ours()
    theirs()
    return _summed([(ours(), theirs()) for _ in range(pairs)])


def _cpu_s(pid: int | None) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _summed(taken: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The median ratio with its quartiles."""
    found = sorted(a / b for a, b in taken)
    low, middle, high = statistics.quantiles(found, n=4)
    return {
        "ratio": middle,
        "quartiles": [low, high],
        "pairs": len(taken),
        "ours_s": statistics.median(a for a, _ in taken),
        "theirs_s": statistics.median(b for _, b in taken),
    }


def timed(children: Sequence[Forked], steps: int) -> tuple[float, float]:
    """Wall and CPU seconds of one step, of some done by all children together."""
    for child in children:
        child.start(steps)
    taken = [child.seconds() for child in children]
    return max(wall for wall, _ in taken) / steps, sum(cpu for _, cpu in taken) / steps


def switch(pairs: int) -> dict[str, Any]:
    """Logical workers on one process against plain accumulation."""
    found = {}
    for name, sizes in (("mlp", (1, 4, 16)), ("dense", (4,))):
        for workers in sizes:
            ours = Forked(lambda w=workers, n=name: engine(w, n))  # type: ignore[misc]
            theirs = Forked(lambda w=workers, n=name: accumulation(w, n))  # type: ignore[misc]
            steps = max(1, 16 // workers)
            found[f"{name}, {workers}"] = ratios(
                lambda o=ours, s=steps: timed([o], s)[1],  # type: ignore[misc]
                lambda t=theirs, s=steps: timed([t], s)[1],  # type: ignore[misc]
                pairs,
            )
            ours.end()
            theirs.end()
    return found


def against_ddp(pairs: int, folder: str) -> dict[str, Any]:
    """Two processes with one worker each against DistributedDataParallel with two."""
    steps = 16
    theirs = [Forked(lambda r=r: ddp(r, 2, f"{folder}/store")) for r in range(2)]  # type: ignore[misc]
    with Agent(LANES) as agent:
        spec = _spec("ddp", workload("dense", 2, seed=1, **SIZE), 2, 10**6)
        agent.start(spec, WorkerMap.parse("0/0:1 0/1:1"), pause_at=2)
        agent.settle("ddp")

        pids = [handle.pid for handle in agent.jobs["ddp"].handles]

        def ours() -> tuple[float, float]:
            at, spent = agent.jobs["ddp"].step, sum(map(_cpu_s, pids))
            events = agent.advance("ddp", at + steps)
            told = [event.at_s for event in events if isinstance(event, e.Progress)]
            wall = (told[-1] - told[0]) / (steps - 1)
            return wall, (sum(map(_cpu_s, pids)) - spent) / steps

        taken = [(ours(), timed(theirs, steps)) for _ in range(pairs + 1)][1:]
        found = {
            "wall": _summed([(a[0], b[0]) for a, b in taken]),
            "cpu": _summed([(a[1], b[1]) for a, b in taken]),
        }
    for child in theirs:
        child.end()
    return found


def _spec(job_id: str, task: Any, workers: int, steps: int, **habits: Any) -> JobSpec:
    return JobSpec(
        job_id=job_id, task=task, num_workers=workers, steps=steps, habits=Habits(**habits)
    )


def sent_bytes() -> dict[str, Any]:
    """Bytes that device 0 sends in a step, over those of a ring all-reduce of the gradient."""
    task = dense_task(num_workers=8, seed=1, device=CPU, **SIZE)
    gradient = sum(4 * p.numel() for p in task.parameters())
    found = {}
    with Agent(LANES, threads=True) as agent:
        for text in ("0/0:4 0/1:4", "0/0:2 0/1:2 0/2:2 0/3:2", "0/0:3 0/1:5", "0/0:1 0/1:3 0/2:4"):
            where = WorkerMap.parse(text)
            devices = where.num_gpus
            agent.start(_spec("b", workload("dense", 8, seed=1, **SIZE), 8, 3), where)
            events = agent.settle("b")
            sent = [event.sent_bytes for event in events if isinstance(event, e.Progress)][-1]
            ring = 2 * (devices - 1) / devices * gradient
            found[text] = {"sent_bytes": sent, "ring_bytes": ring, "ratio": sent / ring}
    return found


def changes(rounds: int) -> dict[str, Any]:
    """Seconds of rescales and recoveries with processes, for small and large models."""
    found: dict[str, Any] = {}
    large = {"width": 2048, "layers": 6, "batch": 2}
    tasks = {
        "longer tiny": workload("longer", 4, seed=1),
        "mlp": workload("mlp", 4, seed=1),
        "dense, 302 MB of state": workload("dense", 4, seed=1, **large),
    }
    for name, task in tasks.items():
        rescales, pauses, recoveries = [], [], []
        with Agent(LANES) as agent:
            agent.warm_up({(0, i): 1 for i in range(4)})
            agent.start(_spec("c", task, 4, 10**6), WorkerMap.parse("0/0:4"), pause_at=2)
            agent.settle("c")
            maps = ["0/0:2 0/1:2", "0/0:4"] * rounds
            for text in maps:
                at = agent.jobs["c"].step
                agent.pause_at("c", at + 10**5)
                agent.wait(lambda event: isinstance(event, e.Progress))
                agent.rescale("c", WorkerMap.parse(text))
                (event,) = [
                    x
                    for x in agent.wait(lambda event: isinstance(event, e.Rescaled))
                    if isinstance(x, e.Rescaled)
                ]
                rescales.append(event.seconds)
                pauses.append(event.pause_s)
            agent.rescale("c", WorkerMap.parse("0/0:2 0/1:2"))
            agent.wait(lambda event: isinstance(event, e.Rescaled))
            for _ in range(rounds):
                pid = agent.jobs["c"].members[0, 1].pid
                assert pid is not None
                began = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                events = agent.wait(lambda event: isinstance(event, e.Recovered))
                recoveries.append(events[-1].at_s - began)
        found[name] = {
            "rescale_s": statistics.median(rescales),
            "rescale_worst_s": max(rescales),
            "pause_s": statistics.median(pauses),
            "recovery_s": statistics.median(recoveries),
            "recovery_worst_s": max(recoveries),
            "rescales": len(rescales),
            "recoveries": len(recoveries),
        }
    state = dense_task(num_workers=4, seed=1, device=CPU, **large)
    numbers = torch.zeros(3 * sum(p.numel() for p in state.parameters()))
    began = time.perf_counter()
    numbers.clone()
    copy_s = time.perf_counter() - began
    found["dense, 302 MB of state"]["state_bytes"] = numbers.numel() * 4
    found["dense, 302 MB of state"]["copy_s"] = copy_s
    return found


def memory() -> dict[str, Any]:
    """Peak resident memory of one worker process by the number of its logical workers."""
    found = {}
    sizes = {"width": 1024, "layers": 6, "batch": 32}
    for workers in (1, 2, 4, 8, 16):
        with Agent(LANES) as agent:
            spec = _spec("m", workload("dense", workers, seed=1, **sizes), workers, 10**6)
            agent.start(spec, WorkerMap.parse(f"0/0:{workers}"), pause_at=3)
            agent.settle("m")
            pid = agent.jobs["m"].members[0, 0].pid
            text = Path(f"/proc/{pid}/status").read_text()
            peak = next(line for line in text.splitlines() if line.startswith("VmHWM"))
            found[str(workers)] = int(peak.split()[1]) / 1024
    first = found["1"]
    gradient = (
        sum(
            4 * p.numel()
            for p in dense_task(num_workers=1, seed=1, device=CPU, **sizes).parameters()
        )
        / 2**20
    )
    return {
        "peak_mib": found,
        "gradient_mib": gradient,
        "ratio_16_over_1": found["16"] / first,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure everything and write it."""
    parser = argparse.ArgumentParser(description="Measure what the engine costs.")
    parser.add_argument("--out", default="benchmarks/results/engine.json")
    parser.add_argument("--quick", action="store_true", help="few pairs, to see that it runs")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)

    pairs, rounds = (3, 1) if args.quick else (9, 3)
    found: dict[str, Any] = {"torch": torch.__version__, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        for name, measure in (
            ("switch", lambda: switch(pairs)),
            ("ddp", lambda: against_ddp(pairs, folder)),
            ("bytes", sent_bytes),
            ("changes", lambda: changes(rounds)),
            ("memory", memory),
        ):
            began = time.perf_counter()
            found[name] = measure()
            print(f"{name} ({time.perf_counter() - began:.0f} s)")
            print(json.dumps(found[name], indent=1))
    Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
