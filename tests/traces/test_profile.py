"""Profiles: looked up, interpolated and said so, refused, written and read again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces import DataError, Profile, UsageError, load_profile
from traces.profile import JobRates, ModelProfile, PredictionError, ReduceCost, Transfer
from traces.profile_file import written
from traces.profile_roofline import DEVICES, Load, roofline

MODEL = ModelProfile(
    microbatch_s={8: {"v100": 1.0, "t4": 2.0}, 16: {"v100": 1.5, "t4": 4.0}, 64: {"v100": 2.5}},
    switch_s={"v100": 0.01},
    update_s={"t4": 0.05},
    gradient_bytes=4e8,
    memory_mib={8: {"v100": 1000.0}, 16: {"v100": 1800.0}},
    rescale_s=20.0,
    interval_s={8: {"v100": (0.9, 1.1)}},
)
FULL = Profile(
    models={"bert": MODEL},
    origin="measured",
    reduce=ReduceCost(
        latency_s=1e-4, bytes_per_s=1e9, by_devices={2: Transfer(0.01, 2e9), 8: Transfer(0.1, 1e9)}
    ),
    machine={"cpu": "a"},
    prediction_error=PredictionError(cases=6, mean_share=0.01, max_share=0.03),
    source="test",
    notes=("one",),
)


def test_recorded_batches_are_exact_and_others_say_what_they_are() -> None:
    exact = FULL.rates("bert", 8)
    assert (dict(exact.microbatch_s), exact.notes) == ({"v100": 1.0, "t4": 2.0}, ())
    between = FULL.rates("bert", 12)
    assert dict(between.microbatch_s) == {"v100": 1.25, "t4": 3.0}
    assert "interpolated linearly from batch sizes 8 and 16" in between.notes[0]
    beyond = FULL.rates("bert", 112)
    assert beyond.seconds("v100") == pytest.approx(3.5)  # 2.5 + (2.5 - 1.5) / 48 * 48
    assert beyond.seconds("t4") == pytest.approx(28.0)
    assert "extrapolated linearly from batch sizes 16 and 64" in beyond.notes[0]
    assert FULL.rates("bert", 4).seconds("v100") == pytest.approx(0.75)


def test_a_line_that_goes_below_zero_is_refused() -> None:
    assert FULL.rates("bert", 4).seconds("t4") == pytest.approx(1.0)  # 2 - 4 * 2 / 8
    steep = Profile(models={"m": ModelProfile(microbatch_s={8: {"a": 1.0}, 16: {"a": 3.0}})},
                    origin="fitted")  # fmt: skip
    with pytest.raises(DataError, match=r"would be -0\.75 s"):
        steep.rates("m", 1)


def test_the_rest_of_the_rates() -> None:
    rates = FULL.rates("bert", 12)
    assert dict(rates.switch_s) == {"v100": 0.01, "t4": 0.0}
    assert dict(rates.update_s) == {"v100": 0.0, "t4": 0.05}
    assert dict(rates.memory_mib) == {"v100": 1400.0}
    assert FULL.rates("bert", 12) is rates  # one object, so it can be the key of a memo
    assert dict(rates.scaled({"t4": 0.5}).microbatch_s) == {"v100": 1.25, "t4": 1.5}
    assert dict(rates.only(["t4"]).microbatch_s) == {"t4": 3.0}
    assert FULL.scaled({("bert", "t4"): 2.0}).rates("bert", 8).seconds("t4") == 4.0


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: FULL.rates("bart", 8), "did you mean 'bert'"),
        (lambda: FULL.rates("bert", 0), "1 or more"),
        (lambda: FULL.rates("bert", 8).seconds("p100"), "no times on GPU type 'p100'"),
        (lambda: FULL.rates("bert", 8).only(["p100"]), "no times on p100"),
        (
            lambda: Profile(
                models={"m": ModelProfile(microbatch_s={8: {"a": 1.0}})}, origin="fitted"
            ).rates("m", 9),
            "batch size 8 alone",
        ),
    ],
)
def test_what_is_not_there_is_refused(ask: Callable[[], object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        ask()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "1", None, True])
def test_rates_that_cannot_be_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match="expected a positive finite number"):
        Profile(models={"m": ModelProfile(microbatch_s={8: {"a": value}})}, origin="fitted")
    with pytest.raises(DataError, match="micro-batch on a"):
        JobRates.plain({"a": value})
    if value != 0.0:
        with pytest.raises(DataError, match="switch_s on a"):
            Profile(
                models={"m": ModelProfile(microbatch_s={8: {"a": 1.0}}, switch_s={"a": value})},
                origin="fitted",
            )


def test_written_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    FULL.save(path)
    again = Profile.load(path)
    assert again.sha256() == FULL.sha256()
    assert written(again) == path.read_text(encoding="utf-8")
    assert (again.models, again.reduce, again.prediction_error) == (
        FULL.models,
        FULL.reduce,
        FULL.prediction_error,
    )
    assert load_profile(path).sha256() == FULL.sha256()
    assert FULL.scaled({("bert", "v100"): 1.0 + 1e-12}).sha256() != FULL.sha256()


@given(
    st.dictionaries(
        st.integers(1, 512),
        st.dictionaries(st.sampled_from("abc"), st.floats(1e-6, 1e6), min_size=1),
        min_size=1,
        max_size=4,
    ),
    st.floats(0.0, 1e12),
)
def test_any_profile_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, times: dict[int, dict[str, float]], size: float
) -> None:
    profile = Profile(
        models={"m": ModelProfile(microbatch_s=times, gradient_bytes=size)}, origin="analytic"
    )
    path = tmp_path_factory.mktemp("profile") / "p.json"
    profile.save(path)
    assert Profile.load(path).models == profile.models


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format_version=2), "format_version"),
        (lambda d: d.update(origin="guessed"), "origin"),
        (lambda d: d.pop("models"), "no 'models'"),
        (lambda d: d.update(extra=1), "unknown key 'extra'"),
        (lambda d: d["models"]["bert"].update(swich_s={}), "did you mean 'switch_s'"),
        (lambda d: d["models"]["bert"]["microbatch_s"]["8"].update(t4=0), "positive finite"),
        (lambda d: d["models"]["bert"]["microbatch_s"].update(x={}), "a batch size"),
        (lambda d: d["models"]["bert"].update(interval_s={"8": {"t4": 1}}), "low, high"),
        (lambda d: d["reduce"].update(latency_s=-1), "latency_s"),
        (lambda d: d["reduce"]["by_devices"].update({"2": {"latency_s": 1}}), "bytes_per_s"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    document = json.loads(written(FULL))
    change(document)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(DataError, match=words) as error:
        Profile.load(path)
    assert "damaged.json" in str(error.value)


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"a": {"b": 1}}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"other\.json"):
        load_profile(path)


def test_the_fitted_table(shared_data: Path) -> None:
    path = shared_data / "easyscale" / "profile_fitted.json"
    profile = load_profile(path)
    assert (profile.origin, len(profile.models)) == ("fitted", 8)
    assert profile.gpu_types("bert") == ("v100", "p100", "t4")
    assert profile.rates("electra", 4).seconds("v100") == 0.503
    # Batch 4 was not fitted for BERT: .542165 - (.80395 - .542165) / 2.
    assert profile.rates("bert", 4).seconds("v100") == pytest.approx(0.4112725)
    assert profile.rates("bert", 8).gradient_bytes == 0.0
    costly = load_profile(path, gradients=True, switch_share=0.003)
    assert costly.rates("resnet50", 64).gradient_bytes == 4 * 25_557_032
    assert costly.rates("resnet50", 64).switch_s["v100"] == pytest.approx(0.331968 * 0.003)


def test_gavels_table(shared_data: Path) -> None:
    profile = load_profile(shared_data / "gavel" / "throughputs.json.gz")
    assert profile.origin == "published"
    assert profile.gpu_types("ResNet-50") == ("k80", "p100", "v100")
    # The cross-check of the published V100 and P100 times: .228/.382 and .401/.631 s.
    for batch, v100, p100 in ((64, 0.228, 0.382), (128, 0.401, 0.631)):
        rates = profile.rates("ResNet-50", batch)
        assert round(rates.seconds("v100"), 3) == v100
        assert round(rates.seconds("p100"), 3) == p100
    assert profile.rates("A3C", 1).seconds("v100") == pytest.approx(1 / 7.175767179667988)
    with pytest.raises(DataError, match="only the fitted table"):
        load_profile(shared_data / "gavel" / "throughputs.json.gz", gradients=True)


def test_the_roofline_by_hand() -> None:
    model = Load(flops_per_sample=12e9, bytes_per_sample=1e8, fixed_bytes=2e8, parameters=1000)
    profile = roofline({"m": model}, [1, 100], ["v100", "t4"], flops_share=0.5, bytes_share=0.5)
    # V100, 100 samples: 1.2e12 / 7.85e12 s of operations, 1.02e10 / 4.5e11 s of bytes.
    assert profile.rates("m", 100).seconds("v100") == pytest.approx(1.2 / 7.85)
    # One sample: 12e9 / 7.85e12 against 3e8 / 4.5e11.
    assert profile.rates("m", 1).seconds("v100") == pytest.approx(12e9 / 7.85e12)
    assert profile.rates("m", 1).seconds("t4") == pytest.approx(12e9 / 4.05e12)
    thin = Load(flops_per_sample=1e6, bytes_per_sample=1e8)
    bound = roofline({"m": thin}, [10], ["t4"], bytes_share=0.5).rates("m", 10).seconds("t4")
    assert bound == pytest.approx(1e9 / 160e9)
    assert profile.origin == "analytic"
    assert profile.rates("m", 1).gradient_bytes == 4000


def test_a_roofline_that_cannot_be() -> None:
    model = Load(flops_per_sample=1e9, bytes_per_sample=0.0)
    with pytest.raises(UsageError, match="did you mean 'v100'"):
        roofline({"m": model}, [1], ["v10"])
    with pytest.raises(UsageError, match="flops_share"):
        roofline({"m": model}, [1], flops_share=0.0)
    with pytest.raises(UsageError, match="flops_per_sample"):
        Load(flops_per_sample=0.0, bytes_per_sample=1.0)
    with pytest.raises(DataError, match="batch sizes"):
        roofline({"m": model}, [])
    assert set(DEVICES) >= {"v100", "p100", "t4", "k80", "a100", "h100"}


def test_every_logical_worker_adds_its_rows(tmp_path: Path) -> None:
    model = ModelProfile(microbatch_s={1: {"v100": 0.1}}, gradient_bytes=100.0, row_bytes=20.0)
    profile = Profile(models={"m": model}, origin="measured")
    assert profile.rates("m", 1).gradient_bytes == 100.0
    assert profile.rates("m", 1, 4).gradient_bytes == 180.0
    profile.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json").models == profile.models
    plain = Profile(models={"m": replace(model, row_bytes=0.0)}, origin="measured")
    assert plain.rates("m", 1, 4) is plain.rates("m", 1, 2)  # one memo for all
    assert "row_bytes" not in written(plain)
    with pytest.raises(DataError, match="row_bytes"):
        Profile(models={"m": replace(model, row_bytes=-1.0)}, origin="measured")
