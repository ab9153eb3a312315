"""The HTML report of runs of training: how well, at what rate, and what exactly was run.

One file in the manner of ``html.py``: no script, no address outside itself, figures as SVG.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from reports import trainingplots as plots
from reports.blocks import Block, Cell, Drawing, Facts, Section, Table
from reports.files import writing
from reports.html import page
from reports.quantities import duration, number
from reports.training import TrainingNumbers, TrainingRun, numbers
from traces.errors import UsageError


def write_training_report(runs: Sequence[TrainingRun], out: Path) -> Path:
    """Write the report of one run of training, or of several side by side, to ``out``.

    Raises :class:`traces.errors.UsageError` when ``out`` cannot be written. Returns ``out``.
    """
    with writing(out) as file:
        file.write(render_training(runs))
    return out


def render_training(runs: Sequence[TrainingRun]) -> str:
    """Return the report as HTML text; the same runs give the same bytes."""
    if not runs:
        raise UsageError("report needs at least one run")
    labels = ", ".join(run.label for run in runs[:4])
    more = f" and {len(runs) - 4} others" if len(runs) > 4 else ""
    found = [numbers(run) for run in runs]
    samples = sorted({n.samples for n in found})
    count = f"{samples[0]:,}" if len(samples) == 1 else f"{samples[0]:,} to {samples[-1]:,}"
    return page(
        title=f"Training {labels}{more}",
        lead=f"{'Run' if len(runs) == 1 else 'Runs'} of training on {count} samples.",
        partial=[],
        sections=[_results(runs, found), _learning(runs), _speed(runs), _what_was_run(runs)],
    )


def _auc(n: TrainingNumbers) -> str:
    half = "" if n.auc_half_width is None else f" ± {n.auc_half_width:.4f}"
    return number(n.auc) + half


_ROWS: tuple[tuple[str, str, Callable[[TrainingNumbers], str]], ...] = (
    ("steps", "", lambda n: number(n.steps)),
    ("samples", "", lambda n: number(n.samples)),
    ("AUC on held-out samples", "", _auc),
    ("best possible AUC", "", lambda n: number(n.best_auc)),
    ("log loss on held-out samples", "nats", lambda n: number(n.logloss)),
    ("training loss, last 100 steps", "nats", lambda n: number(n.final_loss)),
    ("throughput, median", "samples/s", lambda n: number(n.samples_per_s)),
    ("MFU, median", "%", lambda n: "-" if n.mfu is None else number(100 * n.mfu)),
    ("model operations", "TFLOP", lambda n: number(n.flops / 1e12)),
    ("time of all steps", "s", lambda n: number(n.seconds)),
    ("of that for making samples", "%", lambda n: number(100 * n.data_share)),
)


def _results(runs: Sequence[TrainingRun], found: Sequence[TrainingNumbers]) -> Section:
    rows = [
        (Cell(text=name), Cell(text=unit), *(_cell(unit, write(n)) for n in found))
        for name, unit, write in _ROWS
    ]
    table = Table(
        heading="",
        caption="The whole run; AUC and log loss are those of the last evaluation",
        header=("", "unit", *(run.label for run in runs)),
        rows=tuple(rows),
    )
    words = (
        "AUC is exact, from ranks, with its 95 % interval over held-out samples (DeLong). The best"
        " possible AUC is that of whoever knows how the samples were made and sees what the network"
        " sees; it is known for generated samples only. A dash: it has no value here.",
    )
    return Section(anchor="results", title="Results", words=words, blocks=(table,))


def _cell(unit: str, text: str) -> Cell:
    seconds = float(text.replace(",", "")) if unit == "s" and text != "-" else None
    return Cell(text=text, note=duration(seconds))


def _drawing(
    function: Callable[[Axes, Sequence[TrainingRun]], None],
    runs: Sequence[TrainingRun],
    heading: str,
    caption: str,
    height_in: float = 2.7,
) -> Drawing:
    return Drawing(
        heading=heading, caption=caption, draw=lambda ax: function(ax, runs), height_in=height_in
    )


def _learning(runs: Sequence[TrainingRun]) -> Section:
    alone = len(runs) == 1
    band = " The band is everything between the lowest and the highest value." if alone else ""
    staged = any(len(run.stages()) > 1 for run in runs)
    dashed = " Dashed: from here on more of the histories is seen." if alone and staged else ""
    blocks: list[Block] = [
        _drawing(
            plots.loss,
            runs,
            "Loss",
            "Mean binary cross-entropy of a step's samples, before its update; each point of the"
            f" line is the mean over neighbouring steps.{band}"
            + (" Points: log loss on held-out samples." if alone else "")
            + dashed,
        ),
        _drawing(
            plots.auc,
            runs,
            "AUC on held-out samples",
            "With 95 % intervals over samples. Dotted: the best possible for what is seen, where"
            f" that is known.{dashed}",
        ),
    ]
    if any(np.isfinite([seen for _, seen in run.stages()]).any() for run in runs):
        blocks.append(
            _drawing(
                plots.visible,
                runs,
                "What is seen",
                "The newest events of each history that the network was shown, doubling upwards.",
                1.9,
            )
        )
    blocks.append(
        _drawing(
            plots.learning_rate,
            runs,
            "Learning rate",
            "By what both learning rates were multiplied: warm-up and decay.",
            1.7,
        )
    )
    return Section(anchor="learning", title="Learning", words=(), blocks=tuple(blocks))


def _speed(runs: Sequence[TrainingRun]) -> Section:
    blocks: list[Block] = [
        _drawing(
            plots.throughput,
            runs,
            "Throughput",
            "Samples over the seconds of a step, with making its samples; evaluations and"
            " checkpoints are not in it.",
        )
    ]
    if any(not np.isnan(run.column("mfu")).all() for run in runs):
        blocks.append(
            _drawing(
                plots.mfu,
                runs,
                "MFU",
                "Model operations (forward and backward, true lengths) over what the device could"
                " do in the time.",
                2.2,
            )
        )
    return Section(anchor="speed", title="Speed", words=(), blocks=tuple(blocks))


def _what_was_run(runs: Sequence[TrainingRun]) -> Section:
    told = [_facts(run) for run in runs]
    if len(runs) == 1:
        blocks = [Facts(heading="", facts=told[0])]
    else:
        same = tuple(fact for fact in told[0] if all(fact in other for other in told[1:]))
        blocks = [Facts(heading="All runs", facts=same)] if same else []
        for run, found in zip(runs, told, strict=True):
            own = tuple(fact for fact in found if fact not in same)
            blocks.append(Facts(heading=run.label, facts=own))
    return Section(anchor="what-was-run", title="What was run", words=(), blocks=tuple(blocks))


def _facts(run: TrainingRun) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The record in reading order: what it is, then every setting by its place."""
    record = dict(run.record)
    config = record.pop("config", {})
    record.pop("best_auc", None)
    record.pop("format", None)
    found: list[tuple[str, tuple[str, ...]]] = [
        ("run directory", (run.path.name or str(run.path),))
    ]
    if not run.record:
        found.append(("record", ("none: training.json is not there",)))
    found += [(name, _said(value)) for name, value in record.items() if value is not None]
    if isinstance(config, Mapping):
        found += [(name, _said(value)) for name, value in config.items()]
    return tuple(found)


def _said(value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping):
        return (", ".join(f"{name} = {_short(part)}" for name, part in value.items()),)
    return (_short(value),)


def _short(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**9 else str(value)
    if isinstance(value, list | tuple):
        return " ".join(_short(part) for part in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
