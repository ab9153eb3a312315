"""The report of training: what is read, what is refused, what stands in it and in its figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

import tandem
from models.train.trainer import EVALUATION_COLUMNS, STEP_COLUMNS
from reports import style
from reports import trainingplots as plots
from reports.training import EVALUATIONS, STEPS, is_training, numbers, open_training
from reports.trainingpage import render_training
from traces.errors import DataError

BEST = {"8": 0.8, "all": 0.9}


def make(
    path: Path, steps: int = 300, *, peak: bool = True, record: dict[str, Any] | None = None
) -> Path:
    """A run whose first third sees 8 events; evaluated every 50 steps."""
    path.mkdir(parents=True)
    lines = [",".join(STEPS)]
    for i in range(1, steps + 1):
        seen = "8" if i <= steps // 3 else ""
        mfu = "0.25" if peak else ""
        lines.append(f"{i},64,{seen},{min(1.0, i / 20)},{0.7 - i / 1000},{2e9},0.5,0.1,128.0,{mfu}")
    (path / "steps.csv").write_text("\n".join(lines) + "\n")
    rows = [",".join(EVALUATIONS)]
    for i in range(50, steps + 1, 50):
        seen = "8" if i <= steps // 3 else ""
        rows.append(f"{i},{seen},1000,{0.5 + i / 1000},0.01,{0.69 - i / 2000}")
    (path / "evaluations.csv").write_text("\n".join(rows) + "\n")
    if record is None:
        record = {
            "format": 1,
            "seed": 3,
            "device": "cpu",
            "config": {"network": "longer", "ranks": 2, "model": {"d": 8, "head_hidden": [32]}},
            "best_auc": BEST,
        }
    (path / "training.json").write_text(json.dumps(record))
    return path


def test_the_columns_are_those_that_the_trainer_writes() -> None:
    assert STEPS == STEP_COLUMNS
    assert EVALUATIONS == EVALUATION_COLUMNS


def test_a_run_in_numbers(tmp_path: Path) -> None:
    (run,) = open_training([make(tmp_path / "a")])
    found = numbers(run)
    assert (found.steps, found.samples, found.flops) == (300, 300 * 64, 300 * 2e9)
    assert found.final_loss == pytest.approx(0.7 - np.arange(201, 301).mean() / 1000)
    assert found.auc == pytest.approx(0.8)
    assert found.best_auc == 0.9
    assert found.auc_half_width == pytest.approx(0.0196)
    assert (found.samples_per_s, found.mfu) == (128, 0.25)
    assert found.seconds == 150
    assert found.data_share == pytest.approx(0.2)
    assert run.stages() == [(1, 8), (101, math.inf)]
    assert run.best_auc(8) == 0.8
    assert math.isnan(run.best_auc(7))


def test_a_run_that_knows_less(tmp_path: Path) -> None:
    path = make(tmp_path / "a", steps=3, peak=False)
    (path / "training.json").unlink()
    (path / "evaluations.csv").unlink()
    (run,) = open_training([path])
    found = numbers(run)
    assert (found.auc, found.best_auc, found.mfu, found.logloss) == (None, None, None, None)
    assert "training.json is not there" in render_training([run])


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = open_training([make(tmp_path / "x" / "run"), make(tmp_path / "y" / "run")])
    assert len({run.label for run in runs}) == 2


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("steps.csv", lambda t: t.replace("0.699", "much", 1), r"row 2, column 'loss': is no numb"),
        ("steps.csv", lambda t: t.replace(",loss,", ",lost,"), "column 'loss': lacks a column"),
        ("steps.csv", lambda t: t.splitlines()[0] + "\n", "holds no step"),
        ("steps.csv", lambda t: t + t.splitlines()[-1] + "\n", "row 302.*steps do not rise"),
        ("steps.csv", lambda _: "", "is no table"),
        ("evaluations.csv", lambda t: t.replace("0.55,", "x,"), "row 2, column 'auc'"),
        ("training.json", lambda t: t[:9], "is no JSON"),
        ("training.json", lambda _: "[]", "is no record of a run"),
    ],
)
def test_what_is_damaged_is_refused(
    file: str, change: Callable[[str], str], words: str, tmp_path: Path
) -> None:
    path = make(tmp_path / "a")
    (path / file).write_text(change((path / file).read_text()))
    with pytest.raises(DataError, match=words):
        open_training([path])


def test_the_page_holds_everything_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    runs = open_training([make(tmp_path / "a")])
    page = render_training(runs)
    assert page == render_training(open_training([tmp_path / "a"]))
    for words in ("0.8000 ± 0.0196", "0.9000", "19,200", "Loss", "AUC on held-out samples", "MFU"):
        assert words in page
    for words in ("What is seen", "Learning rate", "Throughput", "network", "longer", "d = 8"):
        assert words in page
    assert page.count("<svg") == 6
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org/", "")


def test_a_page_of_two_runs_leaves_out_what_neither_has(tmp_path: Path) -> None:
    plain = {"config": {"network": "din"}, "seed": 3}
    runs = open_training(
        [make(tmp_path / "<b>", peak=False), make(tmp_path / "c", 40, peak=False, record=plain)]
    )
    page = render_training(runs)
    assert page.count("<svg") == 5
    assert "<h3>MFU</h3>" not in page
    assert "<b>" not in page
    assert "All runs" in page


def drawn(function: Callable[[Axes, Any], None], runs: Any) -> Axes:
    with style.paper() as (_, axes):
        function(axes, runs)
        return axes


def test_the_loss_is_drawn_with_its_band_and_evaluations(tmp_path: Path) -> None:
    runs = open_training([make(tmp_path / "a")])
    axes = drawn(plots.loss, runs)
    training = next(x for x in axes.lines if x.get_label() == "training")
    assert len(np.asarray(training.get_xdata())) == 100  # three steps a bin
    assert np.allclose(training.get_ydata(), 0.7 - np.asarray(training.get_xdata()) / 1000)
    held_out = next(x for x in axes.lines if x.get_label() == "held out")
    assert np.asarray(held_out.get_xdata()).tolist() == [50, 100, 150, 200, 250, 300]
    assert axes.collections
    assert "all" in {t.get_text() for t in axes.texts}


def test_auc_is_drawn_under_the_best_for_what_is_seen(tmp_path: Path) -> None:
    axes = drawn(plots.auc, open_training([make(tmp_path / "a")]))
    dotted = [x for x in axes.lines if x.get_linestyle() == ":"]
    ends = [
        (np.asarray(x.get_xdata()).tolist(), np.asarray(x.get_ydata()).tolist()) for x in dotted
    ]
    assert ends == [([1, 101], [0.8, 0.8]), ([101, 300], [0.9, 0.9])]


def test_what_there_is_not_is_said(tmp_path: Path) -> None:
    path = make(tmp_path / "a", 4, peak=False)
    (path / "steps.csv").write_text((path / "steps.csv").read_text().replace(",8,", ",,"))
    (path / "evaluations.csv").write_text(",".join(EVALUATIONS) + "\n")
    runs = open_training([path])
    for function, words in (
        (plots.auc, "no evaluation has an AUC"),
        (plots.mfu, "no run was given the peak"),
        (plots.visible, "every step saw whole histories"),
    ):
        assert words in drawn(function, runs).texts[0].get_text()


def test_spikes_are_never_lost() -> None:
    value = np.zeros(5000)
    value[1234] = 9.0
    x, mean, low, high = plots.binned(np.arange(5000.0), value)
    assert len(x) <= plots.BINS
    assert high.max() == 9
    assert low.min() == 0
    assert mean.sum() == pytest.approx(9 / 42)
    known = np.where(np.arange(5000) < 3, value, np.nan)
    assert len(plots.binned(np.arange(5000.0), known)[0]) == 3
    assert len(plots.binned(np.arange(3.0), np.full(3, np.nan))[0]) == 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b")
    assert is_training(a)
    assert tandem.main(["report", str(a)]) == 0
    assert capsys.readouterr().out.strip() == str(a / "report.html")
    assert "Training a" in (a / "report.html").read_text()
    out = tmp_path / "both.html"
    assert tandem.main(["report", str(a), str(b), "--out", str(out)]) == 0
    assert "Training a, b" in out.read_text()
    other = tmp_path / "simulated"
    other.mkdir()
    assert tandem.main(["report", str(a), str(other)]) == 2
    assert "is no run of training" in capsys.readouterr().err
