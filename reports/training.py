"""A run of training, read from its folder: ``steps.csv``, ``evaluations.csv``, ``training.json``.

The columns are those of ``docs/models/training.md``. The record may be missing (a run of an older
version); the tables may not. Leaves out checkpoints: a report needs no parameter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from traces.errors import DataError

Floats = NDArray[np.float64]

STEPS = (
    *("step", "samples", "visible", "lr_scale", "loss", "flops"),
    *("seconds", "data_seconds", "samples_per_s", "mfu"),
)
EVALUATIONS = ("step", "visible", "samples", "auc", "auc_deviation", "logloss")
_MAY_BE_EMPTY = frozenset({"visible", "mfu", "auc", "auc_deviation", "logloss"})
_TAIL = 100
CONFIDENCE_SIGMAS = 1.96  # of a normal law, 95 %


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One run: ``label`` for reports, the tables with float columns, and the record."""

    path: Path
    label: str
    steps: pd.DataFrame
    evaluations: pd.DataFrame
    record: Mapping[str, Any]

    def column(self, name: str) -> Floats:
        """A column of the steps, NaN where it is not known."""
        values: Floats = self.steps[name].to_numpy(dtype=np.float64)
        return values

    def evaluated(self, name: str) -> Floats:
        """A column of the evaluations, NaN where it is not known."""
        values: Floats = self.evaluations[name].to_numpy(dtype=np.float64)
        return values

    def stages(self) -> list[tuple[int, float]]:
        """Where what is seen changes: (first step, newest events seen; infinity: all)."""
        seen = np.nan_to_num(self.column("visible"), nan=np.inf)
        first = np.flatnonzero(np.concatenate([[True], seen[1:] != seen[:-1]]))
        step = self.column("step")
        return [(int(step[i]), float(seen[i])) for i in first]

    def best_auc(self, visible: float) -> float:
        """The best AUC for who sees so many of the newest events; NaN if nobody knows."""
        known = self.record.get("best_auc") or {}
        name = "all" if math.isinf(visible) or math.isnan(visible) else f"{visible:.0f}"
        return float(known.get(name, math.nan))


def is_training(path: Path) -> bool:
    """Whether a folder holds a run of training, and not one of the simulator."""
    return (path / "steps.csv").is_file() and not (path / "run.json").is_file()


def open_training(paths: Sequence[Path]) -> list[TrainingRun]:
    """Read runs, each with a label of its own.

    Raises :class:`traces.errors.DataError` for a table that is missing, damaged or empty.
    """
    names = [path.name or str(path) for path in paths]
    labels = [
        name if names.count(name) == 1 else str(p) for name, p in zip(names, paths, strict=True)
    ]
    return [_open(path, label) for path, label in zip(paths, labels, strict=True)]


def _open(path: Path, label: str) -> TrainingRun:
    steps = _table(path / "steps.csv", STEPS)
    if steps.empty:
        raise DataError("holds no step", file=path / "steps.csv", expected="a run that has begun")
    evaluations = path / "evaluations.csv"
    return TrainingRun(
        path=path,
        label=label,
        steps=steps,
        evaluations=_table(evaluations, EVALUATIONS)
        if evaluations.is_file()
        else pd.DataFrame({name: np.zeros(0) for name in EVALUATIONS}),
        record=_record(path / "training.json"),
    )


def _table(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=file) from error
    except (ValueError, UnicodeDecodeError) as error:  # what pandas raises is one of these
        raise DataError("is no table", file=file, expected=",".join(columns)) from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError("lacks a column", file=file, column=missing[0], expected=",".join(columns))
    found = {}
    for name in columns:
        text = table[name]
        values = pd.to_numeric(text, errors="coerce")
        bad = values.isna().to_numpy()
        if name in _MAY_BE_EMPTY:
            bad = bad & ~text.str.lower().isin(("", "nan")).to_numpy()
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise DataError(
                "is no number", file=file, row=row + 2, column=name, value=text.iloc[row]
            )
        found[name] = values.astype(np.float64)
    step = found["step"].to_numpy()
    if (np.diff(step) <= 0).any():
        row = int(np.flatnonzero(np.diff(step) <= 0)[0]) + 3
        raise DataError("steps do not rise", file=file, row=row, column="step")
    return pd.DataFrame(found)


def _record(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=file) from error
    except ValueError as error:
        raise DataError("is no JSON", file=file) from error
    if not isinstance(found, dict):
        raise DataError("is no record of a run", file=file, expected="an object")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingNumbers:
    """A run in numbers; None where there is none. ``final_loss``: mean of the last 100 steps."""

    steps: int
    samples: int
    final_loss: float
    auc: float | None
    auc_half_width: float | None
    best_auc: float | None
    logloss: float | None
    samples_per_s: float
    mfu: float | None
    flops: float
    seconds: float
    data_share: float


def numbers(run: TrainingRun) -> TrainingNumbers:
    """Return a run in numbers: rates are medians over steps, AUC that of the last evaluation."""
    seconds = run.column("seconds")
    last = len(run.evaluations) - 1
    auc = run.evaluated("auc")[last] if last >= 0 else math.nan
    deviation = run.evaluated("auc_deviation")[last] if last >= 0 else math.nan
    visible = run.evaluated("visible")[last] if last >= 0 else math.nan
    mfu = run.column("mfu")
    return TrainingNumbers(
        steps=int(run.column("step")[-1]),
        samples=int(run.column("samples").sum()),
        final_loss=float(run.column("loss")[-_TAIL:].mean()),
        auc=_known(auc),
        auc_half_width=_known(CONFIDENCE_SIGMAS * deviation),
        best_auc=_known(run.best_auc(visible)) if last >= 0 else None,
        logloss=_known(run.evaluated("logloss")[last]) if last >= 0 else None,
        samples_per_s=float(np.median(run.column("samples_per_s"))),
        mfu=None if np.isnan(mfu).all() else float(np.nanmedian(mfu)),
        flops=float(run.column("flops").sum()),
        seconds=float(seconds.sum()),
        data_share=float(run.column("data_seconds").sum() / seconds.sum()),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
