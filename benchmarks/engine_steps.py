"""Steps side by side: plain data parallelism, with and without determinism, and the engine.

The part of ``benchmarks/engine.py`` that runs inside the processes that compute. Every process
holds all sides of a comparison and takes them in turns, forwards and backwards, so what else the
machine does falls on all of them. Sides must agree on the state they end in, up to rounding, or the
comparison is refused.

Clocks: processor seconds of the process, which waiting for the other one and for a busy machine do
not lengthen, and wall seconds, which they do. On CUDA, wall seconds between synchronisations.

The C library's allocator gives large blocks back to the system and asks for them again, which costs
up to a third of a small step, in pages that are cleared, and strikes one side or the other by
accident. For times it is told to keep what it has; for memory, to give everything back at once.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from executor.board import Board
from executor.context import captured, enter
from executor.exchange import Exchange
from executor.layout import Layout
from executor.reduce import order_of
from executor.replica import Replica
from executor.task import Task, TaskSpec
from executor.workloads import dense_task, plain_loss

Options = tuple[tuple[int, int], ...]
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # names of glibc's mallopt
KEEP = ((MMAP_THRESHOLD, 32 << 20), (TRIM_THRESHOLD, 1 << 30))
GIVE_BACK = ((MMAP_THRESHOLD, 64 << 10),)

Step = Callable[[], None]
Clocks = dict[str, list[tuple[float, float]]]


def allocator(options: Options) -> None:
    """Tell the C library's allocator what to keep, if it can be told."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for name, value in options if mallopt is not None else ():
        assert mallopt(name, value) == 1


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Torch's deterministic algorithms, strictly, or not at all."""
    torch.use_deterministic_algorithms(on)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def turns(
    sides: dict[str, Step], block: int, blocks: int, device: torch.device, *, strict: set[str]
) -> Clocks:
    """(processor, wall) seconds of a step, for each block of ``block`` steps of each side.

    ``strict``: sides that run with deterministic algorithms. One block of each is thrown away.
    """
    taken: Clocks = {name: [] for name in sides}
    for number in range(blocks + 1):
        order = list(sides.items())
        for name, step in order if number % 2 else order[::-1]:
            gc.collect()
            gc.disable()
            with deterministic(name in strict):
                synchronise(device)
                cpu, wall = time.process_time(), time.perf_counter()
                for _ in range(block):
                    step()
                synchronise(device)
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            gc.enable()
            if number:
                taken[name].append((cpu / block, wall / block))
    return taken


def engine_side(
    task: Task, size: int, index: int, exchange: Exchange, *, overlap: bool = True
) -> tuple[Replica, Step]:
    """The engine on device ``index`` of ``size``, ranks shared out evenly."""
    each = task.num_workers // size
    blocks = tuple(range(i * each, (i + 1) * each) for i in range(size))
    order = order_of(task.parameters(), task.num_workers)
    replica = Replica(task, order, overlap=overlap, own_process=True)
    layout = Layout(blocks=blocks, index=index)
    replica.configure(layout, exchange, replica.first_contexts([*layout.own, *layout.copied]))
    return replica, lambda: (replica.do_step(), None)[1]


def plain_side(task: Any, ranks: range, module: nn.Module) -> Step:
    """What one writes by hand: micro-batches summed up in ``grad``, then the update."""
    places = {rank: task.source.first(rank) for rank in ranks}

    def step() -> None:
        for number, rank in enumerate(ranks):
            batch, places[rank] = task.source.fetch(rank, places[rank])
            last = number == len(ranks) - 1
            if isinstance(module, DistributedDataParallel) and not last:
                with module.no_sync():
                    torch.autograd.backward(plain_loss(module, batch) / len(ranks))
            else:
                torch.autograd.backward(plain_loss(module, batch) / len(ranks))
        task.optimizer.step()
        task.optimizer.zero_grad()

    return step


def check_same(a: Task, b: Task) -> None:
    """Refuse sides that do not train the same: after equal steps, equal up to rounding."""
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def data_parallel(
    index: int, size: int, settings: dict[str, Any], block: int, blocks: int, meeting: Any
) -> Clocks:
    """One of ``size`` processes with one logical worker each: three sides in turns."""
    address, folder, device_name = meeting
    device = torch.device(device_name)
    shared = device.type == "cuda" and torch.cuda.device_count() < size
    allocator(KEEP)
    tasks = {
        name: dense_task(num_workers=size, seed=1, device=device, **settings)
        for name in ("stock", "D0", "D1")
    }
    # NCCL takes one process a GPU. As the engine does, those that share one exchange on the host.
    backend = "nccl" if device.type == "cuda" and not shared else "gloo"
    dist.init_process_group(
        backend, init_method=f"file://{folder}/store", rank=index, world_size=size
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        stock, d0 = (
            DistributedDataParallel(tasks[name].module, broadcast_buffers=False)
            for name in ("stock", "D0")
        )
    between = "cpu" if shared else device
    exchange = Exchange(address, "bench", index, size, device=between)
    replica, engine = engine_side(tasks["D1"], size, index, exchange)
    sides = {
        "stock": plain_side(tasks["stock"], range(index, index + 1), stock),
        "D0": plain_side(tasks["D0"], range(index, index + 1), d0),
        "D1": engine,
    }
    taken = turns(sides, block, blocks, device, strict={"D0", "D1"})
    check_same(tasks["stock"], tasks["D1"])
    replica.close()
    dist.destroy_process_group()
    return taken


def switching(
    workers: int, settings: dict[str, Any], block: int, blocks: int, device_name: str
) -> Clocks:
    """One process: ``workers`` logical workers in turn, and as many micro-batches without them."""
    device = torch.device(device_name)
    allocator(KEEP)
    plain = dense_task(num_workers=workers, seed=1, device=device, **settings)
    elastic = dense_task(num_workers=workers, seed=1, device=device, **settings)
    _, engine = engine_side(elastic, 1, 0, Exchange("", "", 0, 1, device=device))
    sides = {"plain": plain_side(plain, range(workers), plain.module), "EST": engine}
    taken = turns(sides, block, blocks, device, strict={"plain", "EST"})
    check_same(plain, elastic)
    return taken


def switch_alone(settings: dict[str, Any], device_name: str) -> dict[str, float]:
    """Median seconds of one switch (a context in, and out) and of the micro-batch between."""
    device = torch.device(device_name)
    task = dense_task(num_workers=2, seed=1, device=device, **settings)
    replica, step = engine_side(task, 1, 0, Exchange("", "", 0, 1, device=device))
    step()
    (context, _) = replica.own_contexts()
    batch, place = task.source.fetch(0, context.place)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    switches, batches = [], []
    for _ in range(40):
        began = clock()
        enter(context, task.buffers(), device)
        switched = clock()
        task.micro_step(0, batch)
        synchronise(device)
        computed = clock()
        captured(context, place, task.buffers(), device)
        switches.append(switched - began + clock() - computed)
        batches.append(computed - switched)
    return {"switch_s": statistics.median(switches), "micro_batch_s": statistics.median(batches)}


def peak_mib(spec: TaskSpec, device_name: str, options: Options) -> dict[str, float]:
    """Memory of two steps at its highest, beyond what the process had before the task was built.

    And what the dense gradient takes, once.
    """
    device = torch.device(device_name)
    if device.type == "cpu":
        allocator(options)
    if device.type == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        before = _resident_kib("VmRSS")
    task = spec.build(device)
    if device.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    _, step = engine_side(task, 1, 0, Exchange("", "", 0, 1, device=device))
    step()
    step()
    if device.type == "cuda":
        peak = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    else:
        peak = (_resident_kib("VmHWM") - before) / 1024
    gradient = sum(p.numel() * p.element_size() for p in task.parameters()) / 2**20
    return {"peak": peak, "gradient": gradient}


def _resident_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")


def forked(work: Callable[[int], Any], count: int) -> list[Any]:
    """Return ``work(index)`` of ``count`` forks of this process, side by side.

    Torch must not have started threads in this process, nor touched a GPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for index in range(count):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    torch.set_num_threads(1)
                    torch.save(work(index), Path(folder) / str(index))
                    code = 0
                finally:
                    os._exit(code)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        if any(codes):
            raise SystemExit("a process that measures failed")
        return [torch.load(Path(folder) / str(i), weights_only=True) for i in range(count)]


def meeting(device: str) -> tuple[Board, tuple[str, str, str], Any]:
    """A board for the engine's groups and a folder for torch's; keep what is returned."""
    board = Board()
    folder = tempfile.TemporaryDirectory()
    return board, (board.address, folder.name, device), folder


def ratio(taken: Clocks, name: str, base: str, clock: int = 0) -> dict[str, Any]:
    """The median over turns of one side's step over another's, with the quartiles."""
    pairs = zip(taken[name], taken[base], strict=True)
    found = sorted(a[clock] / b[clock] for a, b in pairs)
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    return {
        "ratio": round(middle, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "pairs": len(found),
    }


def bandwidth(index: int, size_bytes: int, where: Any) -> float:
    """Bytes per second of one large message from device 0 to device 1 into fresh memory: median."""
    address, _, _ = where
    exchange = Exchange(address, "bandwidth", index, 2)
    data = torch.zeros(size_bytes, dtype=torch.uint8)
    token = torch.zeros(1)
    found = []
    for _ in range(5):
        began = time.perf_counter()
        if index == 0:
            exchange.send(data, 1).wait()
            exchange.receive(token, 1).wait()
        else:
            exchange.receive(torch.empty(size_bytes, dtype=torch.uint8), 0).wait()
            exchange.send(token, 0).wait()
        found.append(size_bytes / (time.perf_counter() - began))
    exchange.close()
    return statistics.median(found)
