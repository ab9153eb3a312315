"""What LONGER's training step costs, against the plain Transformer and against itself.

    python benchmarks/model.py [--device cpu] [--out benchmarks/results/model.json]

Whole steps are timed (look-ups, forward, backward, both updates), as ``models.bench.measure`` says:
variants take turns, ratios are medians over turns, with the smallest and largest beside them. On a
CPU the clock is processor time with one thread; on CUDA it is wall time. Memory is what a step
needs at its worst beyond the state that stays. Sections: LONGER and the Transformer at lengths from
128 to 10,000, full histories; jagged histories against full ones; bfloat16 and recomputation part
by part; torch's deterministic algorithms against the others; where the time goes. About three
minutes on a core, one on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Both are read when a library is loaded or first used, so before torch is.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

from models.bench.measure import Cost, clock_of, costs, ratio
from models.bench.peaks import Peak, device_name, measured, published
from models.bench.phases import phases
from models.bench.profile import profiled
from models.bench.workload import Prepared, Workload
from models.config import PAPER
from models.longer.execution import PARTS, Execution

HALF = Execution(half=PARTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much to measure: samples by length; events, length and turns of the other sections."""

    lengths: dict[int, int]
    events: int
    length: int
    repeats: int
    profile_lines: int = 15


CPU = Scale(
    lengths={128: 125, 512: 31, 2_000: 8, 5_000: 3, 10_000: 1},
    events=32_000,
    length=2_000,
    repeats=5,
)
CUDA = Scale(
    lengths={128: 2048, 512: 1024, 2_000: 256, 5_000: 64, 10_000: 26},
    events=524_288,
    length=2_000,
    repeats=5,
)
SMOKE = Scale(lengths={16: 4, 32: 2}, events=64, length=32, repeats=2, profile_lines=3)


class Bench:
    """One device, and what is known of it."""

    def __init__(self, device: torch.device, scale: Scale) -> None:
        self.device, self.scale = device, scale
        self.cuda = device.type == "cuda"
        self.peaks: dict[str, Peak] = {"measured": measured(device, clock_of(device))}
        known = published(device_name(device))
        if known is not None:
            self.peaks["published"] = known
        self.precisions = {"float32": Execution()} | ({"bfloat16": HALF} if self.cuda else {})

    def costs(self, workloads: Mapping[str, Workload]) -> dict[str, Cost]:
        """Measure, with an empty allocator on CUDA."""
        if self.cuda:
            torch.cuda.empty_cache()
        return costs(workloads, self.device, repeats=self.scale.repeats)

    def row(self, cost: Cost, base: Cost | None = None) -> dict[str, Any]:
        """Numbers of one workload; against another, ratios too."""
        found: dict[str, Any] = {
            "samples_per_s": _short(cost.samples_per_s),
            "step_ms": _short(1e3 * cost.median_s),
            "step_mib": _short(cost.peak_bytes / 2**20),
            "state_mib": _short(cost.state_bytes / 2**20),
            "gflops_per_step": _short(cost.flops / 1e9),
            "gflops_per_s": _short(cost.flops_per_s / 1e9),
            "traffic_mib": _short(cost.traffic / 2**20),
            "gib_per_s": _short(cost.bytes_per_s / 2**30),
        }
        for name, peak in self.peaks.items():
            found[f"mfu_of_{name}"] = _short(cost.mfu(peak))
            found[f"bandwidth_of_{name}"] = _short(cost.bandwidth_share(peak))
        if base is not None:
            turns = [a / b for a, b in zip(cost.seconds, base.seconds, strict=True)]
            found |= {
                "flops_ratio": _short(cost.flops / base.flops),
                "time_ratio": _short(ratio(cost, base)),
                "time_ratio_range": [_short(min(turns)), _short(max(turns))],
                "memory_ratio": _short(cost.peak_bytes / base.peak_bytes),
            }
        return found

    def lengths(self) -> dict[str, Any]:
        """LONGER and the Transformer side by side, over the lengths."""
        table: dict[str, Any] = {}
        for precision, execution in self.precisions.items():
            for length, batch in self.scale.lengths.items():
                base = Workload(
                    network="transformer",
                    model=replace(PAPER, max_length=length),
                    execution=execution,
                    batch=batch,
                )
                found = self.costs({"transformer": base, "longer": replace(base, network="longer")})
                table[f"{precision}, {length}"] = {
                    "batch": base.batch,
                    "transformer": self.row(found["transformer"]),
                    "longer": self.row(found["longer"], found["transformer"]),
                }
                self.say(f"{precision}, L={length}", table[f"{precision}, {length}"]["longer"])
        return table

    def jagged(self) -> dict[str, Any]:
        """Histories of every length from 1 on, against as many full ones."""
        table = {}
        for precision, execution in self.precisions.items():
            full = self.workload(execution)
            found = self.costs({"full": full, "jagged": replace(full, min_length=1)})
            events = found["jagged"].events / found["full"].events
            table[precision] = {"events_ratio": _short(events)} | self.row(
                found["jagged"], found["full"]
            )
            self.say(f"jagged, {precision}", table[precision])
        return table

    def execution(self) -> dict[str, Any]:
        """Each part in bfloat16, each part recomputed, all of them, and both."""
        everything = Execution(recompute=PARTS)
        variants = {
            "plain": Execution(),
            **{f"half {part}": Execution(half=frozenset({part})) for part in sorted(PARTS)},
            "half all": HALF,
            **{
                f"recompute {part}": Execution(recompute=frozenset({part}))
                for part in sorted(PARTS)
            },
            "recompute all": everything,
            "recompute all, attention too": replace(everything, keep_attention=False),
            "half all, recompute all": Execution(half=PARTS, recompute=PARTS),
            "half all, recompute inner": Execution(half=PARTS, recompute=frozenset({"inner"})),
        }
        found = self.costs({name: self.workload(how) for name, how in variants.items()})
        table = {name: self.row(cost, found["plain"]) for name, cost in found.items()}
        for name, row in table.items():
            self.say(name, row)
        return table

    def strict(self) -> dict[str, Any]:
        """Torch's deterministic algorithms against the ones it takes otherwise."""
        table = {}
        for precision, execution in self.precisions.items():
            fast = replace(self.workload(execution), strict=False)
            found = self.costs({"fast": fast, "strict": replace(fast, strict=True)})
            table[precision] = self.row(found["strict"], found["fast"])
            self.say(f"strict, {precision}", table[precision])
        return table

    def phases(self) -> dict[str, Any]:
        """Look-ups, forward, backward and updates, in milliseconds."""
        table = {}
        for precision, execution in self.precisions.items():
            prepared = Prepared(self.workload(execution), self.device)
            prepared.step()
            found = phases(prepared, repeats=self.scale.repeats, clock=clock_of(self.device))
            table[precision] = {f"{name}_ms": _short(1e3 * s) for name, s in found.items()}
            print(precision, table[precision], flush=True)
        return table

    def profile(self) -> dict[str, Any]:
        """The dearest kernels of a step."""
        table: dict[str, Any] = {}
        for precision, execution in self.precisions.items():
            prepared = Prepared(self.workload(execution), self.device)
            prepared.step()
            found = profiled(prepared.step, self.device)
            table[precision] = {
                "step_ms": _short(found.step_ms),
                "busy_ms": _short(found.busy_ms),
                "launches": _short(sum(line.calls for line in found.lines)),
                "lines": [
                    {
                        "name": line.name[:120],
                        "ms": _short(line.ms),
                        "calls": _short(line.calls),
                        "share": _short(line.share),
                    }
                    for line in found.lines[: self.scale.profile_lines]
                ],
            }
            print(f"{precision}: {found.busy_ms:.1f} ms of work in {found.step_ms:.1f} ms")
            for line in found.lines[: self.scale.profile_lines]:
                print(f"  {line.share:6.1%} {line.ms:8.3f} ms  {line.name[:90]}")
        return table

    def workload(self, execution: Execution) -> Workload:
        """LONGER at the length of the smaller sections."""
        length = self.scale.length
        return Workload(
            model=replace(PAPER, max_length=length),
            execution=execution,
            batch=max(2, self.scale.events // length),
        )

    def say(self, name: str, row: Mapping[str, Any]) -> None:
        """One line of a row with ratios."""
        low, high = row["time_ratio_range"]
        print(
            f"{name:30} {row['samples_per_s']:>10,.4g} samples/s, {row['step_mib']:>8,.4g} MiB;"
            f" FLOPs x{row['flops_ratio']:.3f}, time x{row['time_ratio']:.3f}"
            f" ({low:.3f} to {high:.3f}), memory x{row['memory_ratio']:.3f}",
            flush=True,
        )


def _short(value: float) -> float:
    """Four digits are more than a shared machine can promise."""
    return float(f"{value:.4g}")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="(benchmarks/results/model[-DEVICE].json)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    name = device_name(device)
    suffix = "" if device.type == "cpu" else "-" + name.lower().replace(" ", "-")
    out = args.out or Path(f"benchmarks/results/model{suffix}.json")
    began = time.perf_counter()
    bench = Bench(device, SMOKE if args.smoke else CUDA if device.type == "cuda" else CPU)
    record: dict[str, Any] = {
        "device": name,
        "threads": args.threads,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "machine": platform.machine(),
        "peaks": {
            which: {
                "half_tflops_per_s": _short(peak.half_flops_per_s / 1e12),
                "full_tflops_per_s": _short(peak.full_flops_per_s / 1e12),
                "gib_per_s": _short(peak.bytes_per_s / 2**30),
            }
            for which, peak in bench.peaks.items()
        },
    }
    sections = (
        bench.lengths,
        bench.jagged,
        bench.execution,
        bench.strict,
        bench.phases,
        bench.profile,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    for section in sections:
        start = time.perf_counter()
        try:
            record[section.__name__] = section()
        except RuntimeError as error:  # a section that does not fit, say; the others count
            record[section.__name__] = {"error": str(error).splitlines()[0]}
            print(f"{section.__name__}: {error}")
        record.setdefault("section_s", {})[section.__name__] = round(time.perf_counter() - start, 1)
        record["seconds"] = round(time.perf_counter() - began, 1)
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    ratios = [
        row["longer"]["time_ratio"] / row["longer"]["flops_ratio"]
        for row in record["lengths"].values()
        if "longer" in row
    ]
    if ratios:
        print(f"time ratio over FLOPs ratio, median over lengths: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
