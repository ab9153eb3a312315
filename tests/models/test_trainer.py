"""Runs of training: interrupted or not the same bits; damaged, foreign or full folders refused."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.config import TINY
from models.data.generator import Generator, GeneratorConfig
from models.errors import ModelError
from models.longer.flops import sample_flops
from models.longer.network import Longer
from models.sparse.optimizer import RowAdagrad, RowAdam
from models.train.config import NETWORKS, TrainConfig, build
from models.train.evaluate import evaluate
from models.train.state import checkpoints, load, path_of, save
from models.train.step import DenseOptimizer, State
from models.train.trainer import Habits, Progress, Trained, train
from tests.traincases import CONFIG, DATA, differing, everything, strictly

QUIET = Habits(eval_samples=40, eval_batch=16, evaluate_every=10, save_every=15)
TIMES = ("seconds", "data_seconds", "samples_per_s", "mfu")


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    with strictly():
        yield


def run(out: Path, steps: int = 30, habits: Habits = QUIET, **changes: Any) -> Trained:
    return train(
        changes.pop("config", CONFIG),
        changes.pop("data", DATA),
        steps=steps,
        seed=changes.pop("seed", 3),
        out=out,
        habits=habits,
        **changes,
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with strictly():
        return run(tmp_path_factory.mktemp("straight") / "run")


def rows(out: Path, name: str) -> list[dict[str, str]]:
    with (out / name).open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def same_run(a: Trained, b: Trained) -> bool:
    tables = ("steps.csv", "evaluations.csv")
    return (
        differing(everything(a.state), everything(b.state)) == []
        and all(rows(a.out, name) == rows(b.out, name) for name in tables)
        and repr(a.evaluation) == repr(b.evaluation)
    )


def test_a_run_twice_is_the_same_run(straight: Trained, tmp_path: Path) -> None:
    again = run(tmp_path / "again")
    assert same_run(straight, again)
    files = [path_of(t.out / "checkpoints", 30) for t in (straight, again)]
    for name in ("dense.bin", "tables.bin"):
        assert (files[0] / name).read_bytes() == (files[1] / name).read_bytes()


def test_stop_at_15_and_go_on_is_the_straight_run(straight: Trained, tmp_path: Path) -> None:
    run(tmp_path / "r", steps=15, habits=replace(QUIET, evaluate_every=5))
    (tmp_path / "r" / "evaluations.csv").unlink()
    shutil.copy(straight.out / "evaluations.csv", tmp_path / "r" / "evaluations.csv")
    assert same_run(straight, run(tmp_path / "r", resume=True))
    assert checkpoints(tmp_path / "r" / "checkpoints") == [15, 30]


def test_the_comparison_can_fail(straight: Trained, tmp_path: Path) -> None:
    # The same run, but for a state that forgets AdamW's second moment of one tensor at step 15.
    run(tmp_path / "r", steps=15)
    state = CONFIG.state(build(CONFIG, 3), 3)
    folder = tmp_path / "r" / "checkpoints"
    identity = straight_identity(folder)
    load(state, folder, identity)
    parameter = state.network.get_parameter("head.layers.0.weight")
    state.optimizer.state[parameter]["exp_avg_sq"].zero_()
    shutil.rmtree(path_of(folder, 15))
    save(state, folder, identity)
    other = run(tmp_path / "r", resume=True)
    found = differing(everything(straight.state), everything(other.state))
    assert "network/head.layers.0.weight" in found
    assert not same_run(straight, other)


def straight_identity(folder: Path) -> dict[str, Any]:
    """What the latest checkpoint says of its run."""
    from models.sparse.arrayfile import read_arrays
    from models.train.state import KIND, SCHEMA

    path = path_of(folder, checkpoints(folder)[-1]) / "dense.bin"
    identity: dict[str, Any] = read_arrays(path, KIND, SCHEMA)[0]["run"]
    return identity


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint(
    straight: Trained, tmp_path: Path, number: signal.Signals
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == 17:
            os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="holds the run after step 17"):
        run(tmp_path / "r", habits=replace(QUIET, on_step=interrupt))
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    assert checkpoints(tmp_path / "r" / "checkpoints") == [15, 17]
    assert len(rows(tmp_path / "r", "steps.csv")) == 17
    assert same_run(straight, run(tmp_path / "r", resume=True))


def test_an_interrupted_evaluation_is_done_on_resuming(straight: Trained, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == 20:  # noticed between two batches of the evaluation after it
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="after step 20"):
        run(tmp_path / "r", habits=replace(QUIET, on_step=interrupt))
    assert [row["step"] for row in rows(tmp_path / "r", "evaluations.csv")] == ["10"]
    assert same_run(straight, run(tmp_path / "r", resume=True))


def test_how_often_it_is_evaluated_or_saved_changes_nothing(
    straight: Trained, tmp_path: Path
) -> None:
    other = run(tmp_path / "r", habits=Habits(eval_samples=0, save_every=4, keep=1))
    assert differing(everything(straight.state), everything(other.state)) == []
    assert other.evaluation is None
    assert checkpoints(tmp_path / "r" / "checkpoints") == [30]


def test_the_tables_say_what_was_done(straight: Trained) -> None:
    steps = rows(straight.out, "steps.csv")
    assert [int(row["step"]) for row in steps] == [*range(1, 31)]
    assert {row["samples"] for row in steps} == {"12"}
    assert [row["visible"] for row in steps] == ["3"] * 10 + ["8"] * 10 + [""] * 10
    longest = 12 * sample_flops(CONFIG.model, 12).training
    assert all(0 < int(row["flops"]) <= longest for row in steps)
    assert all(math.isfinite(float(row["loss"])) for row in steps)
    evaluations = rows(straight.out, "evaluations.csv")
    assert [(row["step"], row["visible"]) for row in evaluations] == [
        ("10", "3"),
        ("20", "8"),
        ("30", ""),
    ]
    assert straight.evaluation is not None
    assert float(evaluations[-1]["auc"]) == straight.evaluation.auc


def test_mfu_is_a_share_of_the_peak(tmp_path: Path) -> None:
    seen: list[Progress] = []
    habits = Habits(eval_samples=0, peak_flops_per_s=1e12, on_step=seen.append)
    run(tmp_path / "r", steps=2, habits=habits)
    with (tmp_path / "r" / "steps.csv").open(newline="") as file:
        for row, progress in zip(csv.DictReader(file), seen, strict=True):
            expected = int(row["flops"]) / float(row["seconds"]) / 1e12
            assert float(row["mfu"]) == progress.mfu == pytest.approx(expected)
            assert float(row["samples_per_s"]) == progress.samples_per_s


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_and_goes_on(tmp_path: Path, name: str) -> None:
    config = replace(CONFIG, network=name, model=replace(CONFIG.model, heads=2))
    habits = Habits(eval_samples=8)
    whole = run(tmp_path / "a", steps=4, config=config, habits=habits)
    run(tmp_path / "b", steps=2, config=config, habits=habits)
    halves = run(tmp_path / "b", steps=4, config=config, habits=habits, resume=True)
    assert differing(everything(whole.state), everything(halves.state)) == []
    assert all(int(row["flops"]) > 0 for row in rows(whole.out, "steps.csv"))


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_run(tmp_path: Path) -> None:
    class Exploding(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, *inputs: Any) -> torch.Tensor:
            self.calls += 1
            out: torch.Tensor = self.inner(*inputs)
            return out * (math.nan if self.calls > 7 * CONFIG.ranks else 1)

    def make(config: TrainConfig, seed: int) -> nn.Module:
        return Exploding(Longer(config.model, seed=seed))

    habits = Habits(eval_samples=0, save_every=5)
    with pytest.raises(ModelError, match="step 7, rank 0: the loss is not finite"):
        run(tmp_path / "r", make=make, flops=lambda network, lengths: 0, habits=habits)
    with pytest.raises(ModelError, match="Exploding: its operations cannot be counted"):
        run(tmp_path / "other", make=make, habits=habits)
    assert checkpoints(tmp_path / "r" / "checkpoints") == [0, 5]
    assert len(rows(tmp_path / "r", "steps.csv")) == 7


def other_config(name: str, value: Any) -> Callable[[Path], Trained]:
    return lambda out: run(out, config=replace(CONFIG, **{name: value}), resume=True)


@pytest.mark.parametrize(
    ("go_on", "said"),
    [
        (lambda out: run(out, seed=4, resume=True), "seed: the checkpoint is of another run"),
        (
            lambda out: run(out, data=Generator(DATA.config, seed=6), resume=True),
            "data: the checkpoint is of another run",
        ),
        (other_config("sparse", RowAdagrad()), "config.sparse.*another run"),
        (other_config("ranks", 4), r"config.ranks: .*another run \(found 3\); expected 4"),
        (other_config("dense", DenseOptimizer()), "config.dense.decay_steps"),
        (other_config("model", replace(CONFIG.model, d=8)), "config.model.d:"),
        (
            lambda out: run(out, make=lambda c, s: Longer(c.model, seed=s), resume=True),
            "make: the checkpoint is of another run",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    straight: Trained, go_on: Callable[[Path], Trained], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        go_on(straight.out)


@pytest.mark.parametrize("name", ["dense.bin", "tables.bin"])
@pytest.mark.parametrize("how", ["cut", "flipped", "gone", "swapped"])
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(
    straight: Trained, tmp_path: Path, name: str, how: str
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(straight.out / "checkpoints", folder)
    path = path_of(folder, 30) / name
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "gone":
        path.unlink()
    else:
        shutil.copy(path_of(folder, 15) / name, path)
    state = CONFIG.state(build(CONFIG, 0), 0)
    before = everything(state)
    with pytest.raises(ModelError, match=r"\.bin"):
        load(state, folder, straight_identity(straight.out / "checkpoints"))
    assert differing(before, everything(state)) == []


def test_folders_that_cannot_be_used(straight: Trained, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is there already"):
        run(straight.out)
    with pytest.raises(ModelError, match="holds no checkpoint"):
        run(tmp_path / "none", resume=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="is there already"):
        run(tmp_path / "file")
    with pytest.raises(ModelError, match="cannot be made"):
        run(tmp_path / "file" / "below")
    with pytest.raises(ModelError, match="no such checkpoint"):
        load(straight.state, straight.out / "checkpoints", {}, step=7)


def test_a_failed_save_leaves_the_older_checkpoint(
    straight: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    state = CONFIG.state(build(CONFIG, 0), 0)
    save(state, folder, {})

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    state.step = 1
    monkeypatch.setattr("models.train.state.write_arrays", full)
    with pytest.raises(ModelError, match="No space left"):
        save(state, folder, {})
    assert [p.name for p in folder.iterdir()] == ["step-00000000"]


def test_a_folder_may_be_killed_between_rows_and_checkpoint(
    straight: Trained, tmp_path: Path
) -> None:
    shutil.copytree(straight.out, tmp_path / "r")
    shutil.rmtree(path_of(tmp_path / "r" / "checkpoints", 30))  # rows of 16..30 are there
    assert same_run(straight, run(tmp_path / "r", resume=True))


def test_a_damaged_table_is_refused(straight: Trained, tmp_path: Path) -> None:
    shutil.copytree(straight.out, tmp_path / "r")
    (tmp_path / "r" / "steps.csv").write_text("step,other\n1,2\n")
    with pytest.raises(ModelError, match=r"steps.csv: another table"):
        run(tmp_path / "r", resume=True)
    (tmp_path / "r" / "steps.csv").write_text("step\nx\n")
    with pytest.raises(ModelError, match=r"steps.csv: damaged table"):
        run(tmp_path / "r", resume=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda out: run(out, steps=0), "no step to do"),
        (lambda out: run(out, config=replace(CONFIG, train_samples=2**41)), "too few samples"),
        (lambda out: replace(CONFIG, ranks=13), "ranks: bad size"),
        (lambda out: replace(CONFIG, global_batch=101), "global_batch: bad size"),
        (lambda out: replace(CONFIG, network="din2"), "network: no such network"),
        (lambda out: Habits(keep=0), "keep: bad setting"),
        (lambda out: Habits(peak_flops_per_s=0.0), "peak_flops_per_s: bad setting"),
    ],
)
def test_settings_that_make_no_run(
    wrong: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=said):
        wrong(tmp_path / "r")


def test_evaluation_leaves_the_state_alone(straight: Trained) -> None:
    state: State = straight.state
    before = everything(state)
    state.network.train()
    found = evaluate(state.network, state.tables, DATA, range(200, 260), batch=7)
    again = evaluate(state.network, state.tables, DATA, range(200, 260), batch=60)
    assert differing(before, everything(state)) == []
    assert state.network.training
    assert not state.tables.pending
    assert found.samples == 60
    assert found.auc == pytest.approx(again.auc, abs=1e-3)
    assert found.logloss == pytest.approx(again.logloss, rel=1e-5)
    with pytest.raises(ModelError, match="nothing to evaluate"):
        evaluate(state.network, state.tables, DATA, [])


@pytest.mark.slow
def test_a_tiny_network_learns_most_of_what_there_is_to_learn(tmp_path: Path) -> None:
    data = Generator(GeneratorConfig(length=16, categories=4, num_cross=0, num_users=1), seed=1)
    best = data.bayes_auc(16)
    model = replace(TINY, max_length=16, merge=2, d=16, num_cross=0)
    config = TrainConfig(
        model=model,
        global_batch=128,
        dense=DenseOptimizer(lr=5e-3, warmup_steps=20, decay_steps=800, final_scale=0.1),
        sparse=RowAdam(lr=1e-2),
    )
    found = run(tmp_path / "r", steps=800, config=config, data=data, seed=0, habits=Habits())
    assert found.evaluation is not None
    assert found.evaluation.auc > 0.5 + 0.8 * (best - 0.5)
    assert found.evaluation.auc < best + 3 * found.evaluation.auc_deviation


def test_a_run_says_what_it_is(straight: Trained) -> None:
    record = json.loads((straight.out / "training.json").read_text())
    assert record["config"] == CONFIG.to_json()
    assert (record["seed"], record["device"]) == (3, "cpu")
    assert list(record["best_auc"]) == ["3", "8", "all"]
    assert record["best_auc"]["all"] == DATA.bayes_auc(12)
    assert record["best_auc"]["3"] < record["best_auc"]["8"] < record["best_auc"]["all"]
