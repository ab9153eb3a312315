"""What the networks learn on data whose best possible AUC is known, beside one another.

    python benchmarks/learning.py --out learning.json --cpu 2 --seconds 3600
    python benchmarks/learning.py --table benchmarks/results/learning.json

Runs the list of ``learning_list.py`` in processes of one thread each, ``--cpu`` of them on the
processor and ``--cuda`` on the GPU. A run is given to a process only if it should end in time, and
ends early if it does not; the file is written after each, so what is done stays done. Which device
a run had is in the file. If a run fails on the GPU, its process is replaced by one on the processor
and the run is begun again. ``--scale 0.003`` tries the whole list in minutes.

``--table`` makes the tables of ``docs/models/learnability.md`` from one or more files.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import platform
import time
import traceback
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from learning_list import Experiment, experiments, step_flops

LEAST_CLOCKED_S = 60.0
MARGIN_S = 7.0
"""What a run needs beside training and evaluations: a start, and some slack."""


def estimate_s(experiment: Experiment, device: str) -> float:
    """Roughly how long a run takes."""
    total = 0.0
    for stage in experiment.stages:
        length = min(stage.data.length, stage.visible or stage.data.length)
        work = step_flops(experiment.network, experiment.model, length, stage.batch)
        making = stage.batch * stage.data.length * 2e-7
        each = 0.02 + making + work / 2.5e10 if device == "cpu" else max(0.05, 1.3 * making)
        total += stage.steps * each
    return total


def last_words_s(experiment: Experiment, device: str) -> float:
    """Roughly how long its evaluations take: each makes its samples twice and scores them once."""
    stage, views = experiment.stages[-1], 1 + len(experiment.also_visible)
    making = experiment.eval_samples * stage.data.length * 3e-7
    scoring = experiment.eval_samples / 128 * 0.06
    if device == "cpu":
        work = step_flops(experiment.network, experiment.model, stage.data.length, stage.batch)
        scoring = experiment.eval_samples / stage.batch * (0.02 + work / 2.5e10) / 3
    # A run whose evaluation is late is lost, and another's work may slow it down.
    return MARGIN_S + 2 * views * (2 * making + scoring)


def work(pipe: Connection, device: str) -> None:
    """A process: take experiments from the pipe, send their results back."""
    import torch  # noqa: PLC0415  in the process that uses it

    torch.set_num_threads(1)
    from learning_run import described, perform  # noqa: PLC0415

    while (task := pipe.recv()) is not None:
        experiment, seconds = task
        try:
            result = perform(experiment, device, seconds) | {"settings": described(experiment)}
        except Exception:  # noqa: BLE001  one run that fails must not end the others
            error = traceback.format_exc()[-1500:]
            result = {"name": experiment.name, "device": device, "error": error}
        pipe.send(result)


class Pool:
    """Processes with one experiment each at a time."""

    def __init__(self, devices: list[str], deadline: float) -> None:
        self.deadline = deadline
        self.has_gpu = "cuda" in devices
        self.context = mp.get_context("spawn")
        self.idle: list[tuple[str, Connection, BaseProcess]] = []
        self.busy: dict[Connection, tuple[str, BaseProcess, Experiment]] = {}
        for device in devices:
            self.start(device)

    def start(self, device: str) -> None:
        """Begin a process."""
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=work, args=(theirs, device), daemon=True)
        process.start()
        theirs.close()
        self.idle.append((device, ours, process))

    def fits(self, experiment: Experiment, device: str, seconds: float) -> bool:
        """Whether a run should end in time; clocked ones are the GPU's, if there is one."""
        if experiment.clocked:
            return seconds >= LEAST_CLOCKED_S and (device == "cuda" or not self.has_gpu)
        return estimate_s(experiment, device) <= seconds

    def give(self, todo: list[Experiment]) -> None:
        """Give every idle process the first experiment that should end in time."""
        still = []
        for device, pipe, process in self.idle:
            left = self.deadline - time.monotonic()
            rests = ((e, left - last_words_s(e, device)) for e in todo)
            fits = ((e, rest) for e, rest in rests if self.fits(e, device, rest))
            chosen, rest = next(fits, (None, 0.0))
            if chosen is None:
                still.append((device, pipe, process))
                continue
            todo.remove(chosen)
            pipe.send((chosen, min(chosen.seconds, rest)))
            self.busy[pipe] = (device, process, chosen)
        self.idle = still

    def take(self, todo: list[Experiment]) -> list[dict[str, Any]]:
        """Wait for results, at most to the deadline; what failed on a GPU is to do again."""
        results = []
        left = max(0.0, self.deadline - time.monotonic())
        for pipe in wait(list(self.busy), timeout=left):
            assert isinstance(pipe, Connection)
            device, process, experiment = self.busy.pop(pipe)
            try:
                results.append(pipe.recv())
                failed = "error" in results[-1]
                if failed and device == "cuda":
                    pipe.send(None)
                    self.start("cpu")
                else:
                    self.idle.append((device, pipe, process))
            except EOFError:
                process.join(5)
                ended = f"its process ended with {process.exitcode}"
                results.append({"name": experiment.name, "device": device, "error": ended})
                failed = True
                self.start("cpu")
            if failed and device == "cuda":
                self.has_gpu = False
                todo.insert(0, experiment)
        return results

    def close(self) -> None:
        """End the processes that we began."""
        for _, process, _ in self.busy.values():
            process.terminate()
        for _, pipe, _ in self.idle:
            pipe.send(None)


def machine(cuda: int) -> dict[str, Any]:
    """Where the numbers come from."""
    import torch  # noqa: PLC0415

    return {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if cuda and torch.cuda.is_available() else None,
    }


def run(args: argparse.Namespace) -> None:
    """Run the list."""
    began = time.monotonic()
    pool = Pool(["cuda"] * args.cuda + ["cpu"] * args.cpu, began + args.seconds)
    report: dict[str, Any] = {
        "machine": machine(args.cuda),
        "processes": {"cpu": args.cpu, "cuda": args.cuda, "threads_each": 1},
        "results": [],
    }

    todo = [e for e in experiments() if args.only is None or wanted(e, args.only.split(","))]
    if args.scale != 1:
        todo = [e.shortened(args.scale) for e in todo]
    report["planned"] = len(todo)
    pool.give(todo)
    while pool.busy and time.monotonic() < began + args.seconds:
        for result in pool.take(todo):
            report["results"].append(result)
            last = result.get("evaluations", [{}])[0]
            shown = (last.get("auc"), last.get("bayes_score_auc"), result.get("seconds"))
            print(round(time.monotonic() - began), result["device"], result["name"], *shown)
            if "error" in result:
                print(result["error"])
        pool.give(todo)
        report["wall_seconds"] = round(time.monotonic() - began, 1)
        report["not_begun"] = [e.name for e in todo]
        report["cut_off"] = [e.name for _, _, e in pool.busy.values()]
        write(args.out, report)
    pool.close()
    print(len(report["results"]), "runs;", len(todo), "not begun")


def wanted(experiment: Experiment, only: list[str]) -> bool:
    """Whether an experiment's name begins with one of these."""
    return any(experiment.name.startswith(part) for part in only)


def write(out: Path, report: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    part = out.with_suffix(".part")
    part.write_text(json.dumps(report, separators=(",", ":")).replace('{"name"', '\n{"name"'))
    part.replace(out)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("learning.json"))
    parser.add_argument("--cpu", type=int, default=1, help="processes on the CPU")
    parser.add_argument("--cuda", type=int, default=0, help="processes on the GPU")
    parser.add_argument("--seconds", type=float, default=3600.0, help="when to stop")
    parser.add_argument("--scale", type=float, default=1.0, help="share of every run's steps")
    parser.add_argument("--only", help="beginnings of names (group/variant/seed), by commas")
    parser.add_argument("--table", type=Path, nargs="+", help="make tables from these files")
    args = parser.parse_args()
    if args.table:
        from learning_tables import tables  # noqa: PLC0415

        print(tables([json.loads(path.read_text()) for path in args.table]))
    else:
        run(args)


if __name__ == "__main__":
    main()
