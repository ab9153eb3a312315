"""``tandem train``, ``tandem bench model`` and ``tandem serve``.

``train``: LONGER, or a baseline, on the generator whose best AUC is known.

One function call: ``models.train.trainer.train``. Everything that changes a number is an option
here and is saved in the run; a run that is resumed must be given the same ones.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from models.baselines.registry import BASELINES
from models.bench.cli import PARTS, add_bench
from models.config import PRESETS
from models.errors import ModelError
from models.serve.cli import add_publish_options, add_serve, publisher

if TYPE_CHECKING:
    from models.data.generator import Generator
    from models.train.config import TrainConfig
    from models.train.trainer import Progress, Trained


def add_commands(subparsers: Any) -> None:
    """Register this room's commands."""
    add_bench(subparsers)
    train = subparsers.add_parser(
        "train",
        help="train LONGER or a baseline on generated histories",
        description="Train on the generator, whose best possible AUC is known. Leaves checkpoints,"
        " steps.csv and evaluations.csv in DIR; Ctrl-C leaves a checkpoint too. To go on, give the"
        " same options again with --resume.",
    )
    train.add_argument("--steps", type=int, required=True, metavar="N", help="steps in all")
    train.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    train.add_argument(
        "--preset", choices=list(PRESETS), default="tiny", help="size of the network (tiny)"
    )
    train.add_argument(
        "--network", choices=["longer", *BASELINES], default="longer", help="(longer)"
    )
    train.add_argument("--seed", type=int, default=0, metavar="N", help="of everything (0)")
    train.add_argument("--device", default="cpu", help="torch's name of it (cpu)")
    train.add_argument(
        "--threads", type=int, metavar="N", help="of the CPU (torch's choice; 1 suits small sizes)"
    )
    train.add_argument("--json", action="store_true", help="print the result as JSON")
    train.add_argument("--quiet", action="store_true", help="no progress")
    _add_data_options(train.add_argument_group("samples"))
    _add_step_options(train.add_argument_group("steps"))
    _add_habit_options(train.add_argument_group("beside the steps (changes no number)"))
    add_publish_options(train.add_argument_group("versions for serving"))
    train.set_defaults(run=_train)
    add_serve(subparsers)


def _add_data_options(group: Any) -> None:
    group.add_argument(
        "--length", type=int, metavar="N", help="events of a history (the preset's longest)"
    )
    group.add_argument("--categories", type=int, default=8, metavar="N", help="(8)")
    group.add_argument(
        "--curriculum",
        default="0:all",
        metavar="STEP:EVENTS,...",
        help="newest events seen from a step on, as in 0:16,300:all (0:all)",
    )


def _add_step_options(group: Any) -> None:
    group.add_argument("--batch", type=int, default=256, metavar="N", help="samples a step (256)")
    group.add_argument("--ranks", type=int, default=1, metavar="N", help="micro-batches a step (1)")
    group.add_argument("--lr", type=float, default=3e-3, help="of AdamW (0.003)")
    group.add_argument("--table-lr", type=float, default=1e-2, help="of row-wise Adam (0.01)")
    group.add_argument(
        "--table-scale", type=float, default=1.0, help="rows begin uniform in +-this (1)"
    )
    group.add_argument("--warmup", type=int, default=0, metavar="STEPS", help="(0)")
    for name, does in (("half", "compute in bfloat16"), ("recompute", "forget activations")):
        group.add_argument(
            f"--{name}",
            action="append",
            default=[],
            choices=PARTS,
            help=f"a part of the network to {does}; may be repeated",
        )


def _add_habit_options(group: Any) -> None:
    group.add_argument(
        "--evaluate-every", type=int, default=0, metavar="STEPS", help="0: at the end only"
    )
    group.add_argument(
        "--eval-samples", type=int, default=4096, metavar="N", help="held-out samples (4096)"
    )
    group.add_argument(
        "--save-every", type=int, default=0, metavar="STEPS", help="0: at the end only"
    )
    group.add_argument(
        "--peak-tflops", type=float, metavar="T", help="what the device can do, for MFU"
    )


def _train(args: argparse.Namespace) -> int:
    if find_spec("torch") is None:
        raise ModelError("training needs torch", expected="pip install 'tandem-lab[train]'")
    from models.device import threads, usable_device
    from models.train.trainer import Habits, train

    config, data = _run_of(args)
    publish = publisher(args, config)
    peak = None if args.peak_tflops is None else args.peak_tflops * 1e12
    with threads(args.threads), _Bar(args.quiet) as on_step:
        trained = train(
            config,
            data,
            steps=args.steps,
            seed=args.seed,
            out=args.out,
            resume=args.resume,
            device=usable_device(args.device),
            habits=Habits(
                evaluate_every=args.evaluate_every,
                eval_samples=args.eval_samples,
                save_every=args.save_every,
                peak_flops_per_s=peak,
                on_step=on_step,
                publish=publish,
                publish_every=args.publish_every,
            ),
        )
    _say(trained, config, data, as_json=args.json)
    return 0


def _run_of(args: argparse.Namespace) -> tuple[TrainConfig, Generator]:
    """What the options describe: the run's configuration and its data."""
    from models.data.generator import Generator, GeneratorConfig
    from models.longer.execution import Execution
    from models.sparse.optimizer import RowAdam
    from models.train.config import TrainConfig
    from models.train.curriculum import parse_curriculum
    from models.train.step import DenseOptimizer

    model = PRESETS[args.preset]
    if args.length is not None:
        model = replace(model, max_length=args.length)
    generator = GeneratorConfig(
        length=model.max_length, categories=args.categories, num_cross=model.num_cross
    )
    config = TrainConfig(
        network=args.network,
        model=model,
        execution=Execution(half=frozenset(args.half), recompute=frozenset(args.recompute)),
        global_batch=args.batch,
        ranks=args.ranks,
        dense=DenseOptimizer(lr=args.lr, warmup_steps=args.warmup),
        sparse=RowAdam(lr=args.table_lr),
        table_scale=args.table_scale,
        curriculum=parse_curriculum(args.curriculum),
    )
    return config, Generator(generator, args.seed)


def _say(trained: Trained, config: TrainConfig, data: Generator, *, as_json: bool) -> None:
    step = trained.state.step
    seen = config.curriculum.visible(step - 1)
    length = data.config.length
    visible = length if seen is None else min(seen, length)
    found = trained.evaluation
    values = {
        "steps": step,
        "samples": step * config.global_batch,
        "visible": visible,
        "eval_samples": 0 if found is None else found.samples,
        "auc": None if found is None else _number(found.auc),
        "auc_deviation": None if found is None else _number(found.auc_deviation),
        # Exact sums over a whole history grow with its length; the normal law holds for long ones.
        "bayes_auc": data.bayes_auc(visible, exact=length <= 1024),
        "logloss": None if found is None else _number(found.logloss),
        "out": str(trained.out),
    }
    if as_json:
        print(json.dumps(values))
        return
    print(f"{step:,} steps, {values['samples']:,} samples, the newest {visible:,} events seen")
    if found is not None:
        print(f"AUC {found.auc:.4f} +- {found.auc_deviation:.4f}, log loss {found.logloss:.4f}")
        print(f"on {found.samples:,} held-out samples; the best possible AUC is", end=" ")
        print(f"{values['bayes_auc']:.4f}")
    print(f"run: {trained.out} ('tandem report {trained.out}' draws its curves)")


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


class _Bar:
    """A progress line on stderr while it is a terminal; yields ``on_step`` or None."""

    def __init__(self, quiet: bool) -> None:
        self._show = not quiet and sys.stderr.isatty()

    def __enter__(self) -> Callable[[Progress], None] | None:
        if not self._show:
            return None
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("train", total=None, state="")
        return self._update

    def _update(self, now: Progress) -> None:
        state = [f"loss {now.loss:.4f}"]
        if now.evaluation is not None:
            state.append(f"AUC {now.evaluation.auc:.4f}")
        state.append(f"{now.samples_per_s:,.0f} samples/s")
        if now.mfu is not None:
            state.append(f"MFU {now.mfu:.1%}")
        self._bar.update(self._task, total=now.steps, completed=now.step, state=", ".join(state))

    def __exit__(self, *_: object) -> None:
        if self._show:
            self._bar.stop()
