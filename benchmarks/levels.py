"""What determinism levels cost: operators and a training step of LONGER, level against level.

    python benchmarks/levels.py [--device cpu] [--out benchmarks/results/levels.json]

One process for each side, all alive at once; each measures a short round on request, in turns, and
the ratio is that of the best calls: other work on the machine only adds time, and hits all sides
alike. On a CPU seconds are the processor's (one thread). Sides there: ``stock`` (torch as it
comes), ``D1`` (the lane's own kernels; D0 is the same, because the settings are), and ``D2`` with a
lane of each lower capability in the job.
On a GPU: ``stock``, ``D1`` and ``D2``. Times are of forward and backward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from executor.devices import DeviceLane, parse_lanes
from executor.fingerprint import fingerprint
from executor.levels import Agreement, Level, agree, configure
from executor.machine import Machine, probe
from models.bench.workload import Drawn
from models.config import PAPER, TINY
from models.train.config import TrainConfig, build
from models.train.step import train_step

Run = Callable[[], object]


def operators(device: str) -> dict[str, Callable[[], Run]]:
    """What makes a forward and backward pass, by name; larger on a GPU."""
    rows, width = (8192, 256) if device != "cpu" else (512, 128)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device).requires_grad_()

    x, wide = drawn(rows, width), drawn(rows, 4 * width)
    weight, bias = drawn(4 * width, width), drawn(4 * width)
    square = drawn(4 * width, 4 * width)
    heads = [drawn(rows // 64, 4, 64, width // 4) for _ in range(3)]
    table, index = drawn(1000, width), torch.arange(rows).mul(37).remainder(1000).to(device)
    mask = torch.ones(64, 64, dtype=torch.bool).tril().to(device)
    calls: dict[str, tuple[Callable[[], Tensor], Sequence[Tensor]]] = {
        "linear": (lambda: F.linear(x, weight, bias), (x, weight, bias)),
        "matmul": (lambda: square @ square, (square,)),
        "softmax": (lambda: F.softmax(wide, -1), (wide,)),
        "layer_norm": (lambda: F.layer_norm(x, (width,), bias[:width], bias[:width]), (x, bias)),
        "gelu": (lambda: F.gelu(wide), (wide,)),
        "sigmoid": (lambda: torch.sigmoid(wide), (wide,)),
        "sum": (lambda: wide.sum(0), (wide,)),
        "dropout": (lambda: F.dropout(wide, 0.1), (wide,)),
        "attention": (lambda: F.scaled_dot_product_attention(*heads, attn_mask=mask), heads),
        "embedding": (lambda: F.embedding(index, table), (table,)),
    }

    def both(call: Callable[[], Tensor], given: Sequence[Tensor]) -> Run:
        gradient = torch.ones_like(call().detach())
        return lambda: torch.autograd.grad(call(), given, grad_outputs=gradient)

    parameter = nn.Parameter(square.detach().clone())
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([parameter])
    makers: dict[str, Callable[[], Run]] = {n: partial(both, *c) for n, c in calls.items()}
    return makers | {"adamw": lambda: optimizer.step}


def longer(device: str, preset: str, batch: int, length: int) -> Run:
    """One training step of LONGER on drawn samples."""
    model = replace(PAPER if preset == "paper" else TINY, max_length=length, dropout=0.1)
    config = TrainConfig(model=model, global_batch=batch)
    state = config.state(build(config, 0).to(device), 0, device=device)
    data = Drawn(max_length=length, min_length=length // 2, items=1000, num_samples=4 * batch)
    batches = [data.batch(range(i * batch, (i + 1) * batch)).to(device) for i in range(4)]
    return lambda: train_step(state, [batches[state.step % 4]])


def child(given: str) -> int:
    """Measure a round of everything for each line of standard input."""
    agreement, lane = json.loads(given)
    lane = DeviceLane.from_json(lane)
    if agreement is not None:
        configure(Agreement.from_json(agreement), lane)
    else:
        torch.set_num_threads(lane.threads)
    makers: dict[str, Callable[[], Run]] = dict(operators(lane.device))
    makers["LONGER tiny"] = lambda: longer(lane.device, "tiny", 32, 32)
    if lane.device != "cpu":
        makers["LONGER paper"] = lambda: longer(lane.device, "paper", 64, 500)
    say(list(makers))
    warm: dict[str, Run] = {}
    for line in sys.stdin:
        name, seconds = json.loads(line)
        if name not in warm:  # compiles what there is to compile
            warm[name] = makers[name]()
            for _ in range(3):
                warm[name]()
        say(timed(warm[name], lane.device, seconds))
    return 0


def say(value: object) -> None:
    """Answer the parent."""
    print(json.dumps(value))
    sys.stdout.flush()


def timed(run: Run, device: str, seconds: float) -> float:
    """Seconds of the best call of a round."""
    times: list[float] = []
    clock = time.process_time if device == "cpu" else time.perf_counter
    end = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 200):
        began = clock()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(clock() - began)
    return min(times)


def sides(machine: Machine, device: str) -> dict[str, tuple[Agreement | None, DeviceLane]]:
    """What is compared: an agreement (None: torch as it comes) and a lane, by name."""
    (lane,) = parse_lanes(device if device == "cpu" else "cuda:0", machine)
    found: dict[str, tuple[Agreement | None, DeviceLane]] = {
        "stock": (None, lane),
        "D1": (agree(Level.D1, [lane]), lane),
    }
    if device != "cpu":
        return found | {"D2": (agree(Level.D2, [lane]), lane)}
    for capability in reversed(machine.capabilities[:-1]):
        (other,) = parse_lanes(f"cpu-{capability}", machine)
        found[f"D2 with {capability}"] = (agree(Level.D2, [lane, other]), lane)
    return found


def started(agreement: Agreement | None, lane: DeviceLane) -> subprocess.Popen[str]:
    """Start the process of one side."""
    environ = {"OMP_NUM_THREADS": "1"} if agreement is None else agreement.environ(lane)
    given = [None if agreement is None else agreement.to_json(), lane.to_json()]
    return subprocess.Popen(
        [sys.executable, __file__, "--child", json.dumps(given)],
        env=os.environ | environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(process: subprocess.Popen[str], question: object = None) -> Any:
    """Ask a side's process, or hear what it says at first."""
    assert process.stdin is not None
    assert process.stdout is not None
    if question is not None:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("a process ended; see its error above")
    return json.loads(line)


def compare(
    processes: Mapping[str, subprocess.Popen[str]], rounds: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield a row for each name: best calls in seconds, and ratios to the side before."""
    names, *_ = [answer(process) for process in processes.values()]
    for name in names:
        times: dict[str, list[float]] = {side: [] for side in processes}
        for _ in range(rounds):
            for side, process in processes.items():
                times[side].append(answer(process, [name, seconds]))
        best = {side: min(found) for side, found in times.items()}
        base = {side: "stock" if side == "D1" else "D1" for side in best if side != "stock"}
        ratios = {f"{side} / {other}": best[side] / best[other] for side, other in base.items()}
        yield {"name": name, "seconds": best, "ratios": ratios}


def main() -> int:
    """Run the comparison, print it, and write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each name, side and round")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        return child(args.child)
    machine = probe()
    compared = sides(machine, args.device)
    processes = {side: started(*given) for side, given in compared.items()}
    values: dict[str, Any] = {"machine": fingerprint(machine), "device": args.device}
    values |= {"rounds": args.rounds, "sides": list(compared), "rows": []}
    try:
        for row in compare(processes, args.rounds, args.seconds):
            said = ", ".join(f"{what} {value:.3f}" for what, value in row["ratios"].items())
            at_d1 = 1e3 * row["seconds"]["D1"]
            print(f"{row['name']:<14} {at_d1:>9.3f} ms at D1; {said}", flush=True)
            values["rows"].append(row)
            if args.out is not None:  # after every row: who ends us early has those before
                args.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
