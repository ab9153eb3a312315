"""How fast rows are looked up and updated, against torch's own embedding with sparse gradients.

    python benchmarks/sparse.py [--out benchmarks/results/sparse.json] [--device cpu]

A step is: look up a batch of positions, backward from a given gradient, update the rows. The ids
follow a power law over ``--ids`` raw 64-bit ids, as items of a history do; ``nn.Embedding`` gets
the same ids already numbered 0..n-1, which ours has to find out (a fixed vocabulary, no admission,
no eviction). Both sides have met every id before the clock starts. Rows per second count *unique*
rows of a batch; positions per second count the batch. Every figure is the best of ``--repeats``
steps after a warm-up, sides taking turns, in processor seconds (on a GPU: seconds), because the
machine is not ours alone; the median stands beside it, and the rate as a share of torch's own with
the same optimizer, formed turn by turn (median, smallest, largest).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.sparse import EmbeddingTable, Eviction, RowAdagrad, RowAdam, TableSet, Tiers
from models.sparse.initial import mix

Step = Callable[[int], None]


def batches(ids: int, positions: int, count: int, device: str) -> list[Tensor]:
    """Id numbers 0..ids-1 by a power law, a few batches of them."""
    draw = torch.Generator().manual_seed(1)
    uniform = torch.rand((count, positions), generator=draw, dtype=torch.float64)
    return [row.to(device) for row in (ids**uniform - 1).long().clamp(0, ids - 1)]


def ours(numbers: list[Tensor], ids: int, dim: int, device: str, **settings: Any) -> Step:
    """Our table; ids are raw 64-bit ones (the mix of the number, which is one to one)."""
    tables = TableSet([EmbeddingTable("item", dim, 1, device=device, **settings)])
    raw = [mix(batch) for batch in numbers]
    everything = mix(torch.arange(ids, device=device))
    rows = tables("item", everything)
    rows.backward(torch.ones_like(rows))  # type: ignore[no-untyped-call]
    tables.apply(0)
    grad = torch.randn(len(raw[0]), dim, device=device)

    def step(number: int) -> None:
        tables("item", raw[number % len(raw)]).backward(grad)  # type: ignore[no-untyped-call]
        tables.apply(number + 1)

    return step


def plain(numbers: list[Tensor], ids: int, dim: int, device: str, optimizer: str) -> Step:
    """The same with ``nn.Embedding(sparse=True)``."""
    embedding = nn.Embedding(ids, dim, sparse=True, device=device)
    parameters = list(embedding.parameters())
    update: torch.optim.Optimizer = (
        torch.optim.Adagrad(parameters, lr=0.05)
        if optimizer == "Adagrad"
        else torch.optim.SparseAdam(parameters, lr=0.001)
    )
    grad = torch.randn(len(numbers[0]), dim, device=device)

    def step(number: int) -> None:
        update.zero_grad()
        embedding(numbers[number % len(numbers)]).backward(grad)
        update.step()

    return step


def measure(sides: dict[str, Step], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each step of each side, taking turns; processor seconds on a CPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(repeats + 2):
        for name, step in sides.items():
            if device != "cpu":
                torch.cuda.synchronize()
            began = clock()
            step(number)
            if device != "cpu":
                torch.cuda.synchronize()
            if number >= 2:
                taken[name].append(clock() - began)
    return taken


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sparse.json"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ids", type=int, default=200_000)
    parser.add_argument("--positions", type=int, default=65_536)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # Torch's side warns unless it is said whether it should check itself.
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    numbers = batches(args.ids, args.positions, 4, args.device)
    shape = (numbers, args.ids, args.dim, args.device)
    sides = {
        "RowAdagrad": ours(*shape, optimizer=RowAdagrad()),
        "RowAdam": ours(*shape, optimizer=RowAdam()),
        "RowAdagrad, half hot": ours(*shape, tiers=Tiers(hot_rows=args.ids // 2)),
        "RowAdagrad, half hot, rest in a file": ours(
            *shape, tiers=Tiers(hot_rows=args.ids // 2, host_rows=0)
        ),
        "RowAdagrad, eviction every step": ours(
            *shape, eviction=Eviction(every_steps=1, max_ids=args.ids)
        ),
        "nn.Embedding(sparse=True), Adagrad": plain(*shape, optimizer="Adagrad"),
        "nn.Embedding(sparse=True), SparseAdam": plain(*shape, optimizer="SparseAdam"),
    }
    unique = statistics.mean(len(torch.unique(batch)) for batch in numbers)
    results = {}
    taken = measure(sides, args.repeats, args.device)
    for name, seconds in taken.items():
        best, median = min(seconds), statistics.median(seconds)
        plain_one = "SparseAdam" if "Adam" in name else "Adagrad"
        base = taken[f"nn.Embedding(sparse=True), {plain_one}"]
        shares = sorted(b / s for s, b in zip(seconds, base, strict=True))
        results[name] = {
            "best_s": round(best, 5),
            "median_s": round(median, 5),
            "rows_per_s": round(unique / best),
            "positions_per_s": round(args.positions / best),
            "share_of_plain": round(statistics.median(shares), 3),
            "share_range": [round(shares[0], 3), round(shares[-1], 3)],
        }
    record = {
        "setting": {
            "ids": args.ids,
            "positions": args.positions,
            "unique_rows": unique,
            "dim": args.dim,
            "repeats": args.repeats,
            "threads": args.threads,
            "device": args.device,
        },
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if args.device != "cpu" else "cpu",
        "results": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, row in results.items():
        print(
            f"{name:40} {row['rows_per_s']:>10,} rows/s {row['positions_per_s']:>11,} positions/s"
            f" {row['share_of_plain']:6.2f} of torch's"
        )


if __name__ == "__main__":
    main()
