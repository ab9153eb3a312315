"""``tandem train``: one run, resumed; what a user can get wrong is one line and a code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import tandem
from tests.traincases import strictly

SMALL = ["train", "--batch", "16", "--length", "8", "--eval-samples", "64", "--categories", "2"]


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    with strictly():
        yield


def test_a_run_and_its_resumption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert tandem.main([*SMALL, "--steps", "3", "--out", out]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("3 steps, 48 samples, the newest 8 events seen\nAUC 0.")
    assert tandem.main([*SMALL, "--steps", "5", "--out", out, "--resume", "--json"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    straight = str(tmp_path / "straight")
    assert tandem.main([*SMALL, "--steps", "5", "--out", straight, "--json"]) == 0
    assert resumed == json.loads(capsys.readouterr().out) | {"out": out}
    assert resumed["steps"] == 5
    assert 0.5 < resumed["bayes_auc"] < 1


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--steps", "0"], 1, "steps: no step to do (found 0); expected 1 or more"),
        (["--steps", "1", "--resume"], 1, "holds no checkpoint"),
        (["--steps", "1", "--curriculum", "4"], 1, "no stage of a curriculum"),
        (["--steps", "1", "--device", "nowhere"], 1, "device nowhere: cannot be used"),
        (["--steps", "1", "--length", "0"], 1, "max_length: is no size"),
        (["--steps", "1", "--ranks", "17"], 1, "ranks: bad size (found 17); expected 1 to 16"),
        (["--steps", "1", "--peak-tflops", "-1"], 1, "peak_flops_per_s: bad setting"),
        (["--steps", "1", "--threads", "0"], 1, "threads: no such number"),
        (["--steps", "1", "--seed", "-1"], 1, "the seed does not fit"),
        (["--steps", "1", "--preset", "tny"], 2, "did you mean 'tiny'?"),
        (["--steps", "1", "--network", "dim"], 2, "did you mean 'din'"),
        (["--steps", "1", "--half", "heads"], 2, "did you mean 'head'?"),
    ],
)
def test_what_is_wrong_is_one_line(
    options: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tandem.main([*SMALL, "--out", str(tmp_path / "run"), *options]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("tandem: error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
