"""Synthetic workloads against the statistics of the traces they are fitted to."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from traces import Workload, generate
from traces.errors import UsageError
from traces.synthetic import arrivals, sizes
from traces.synthetic.kinds import KINDS
from traces.synthetic.sizes import Lognormals, duration_law, gpu_counts
from traces.synthetic.streams import Streams

Floats = NDArray[np.float64]
WINDOWS_S = (60, 600, 3600, 6 * 3600, 86_400)
TEN_WEEKS = 70


@cache
def philly(seed: int) -> Workload:
    return generate("philly", seed=seed, days=TEN_WEEKS)


def dispersion(submit_s: Floats, days: int) -> list[float]:
    """Variance over mean of the counts in windows of a minute to a day."""
    indices = []
    for window in WINDOWS_S:
        counts = np.bincount((submit_s // window).astype(int), minlength=days * 86_400 // window)
        indices.append(float(counts.var() / counts.mean()))
    return indices


def statistics(workload: Workload, days: int) -> dict[str, float]:
    table = workload.table
    submit = table["submit_s"].to_numpy()
    gaps = np.diff(submit)
    gpus = table["num_gpus"].to_numpy(dtype=float)
    names = ("index_1m", "index_10m", "index_1h", "index_6h", "index_1d")
    return {
        "jobs": len(table),
        "cv": float(gaps.std() / gaps.mean()),
        "one_gpu": float((gpus == 1).mean()),
        "mean_s": float(table["duration_s"].mean()),
        "demand": float((table["duration_s"].to_numpy() * gpus).sum() / (days * 86_400)),
        **dict(zip(names, dispersion(submit, days), strict=True)),
    }


def test_philly_means_over_twelve_seeds() -> None:
    runs = pd.DataFrame([statistics(philly(seed), TEN_WEEKS) for seed in range(12)])
    mean = runs.mean()
    # The published run's means; a mean of twelve has a third of a run's deviation.
    assert mean["jobs"] == pytest.approx(70_700, rel=0.08)
    assert mean["cv"] == pytest.approx(1.9, abs=0.1)
    assert mean["one_gpu"] == pytest.approx(0.93, abs=0.01)
    assert mean["mean_s"] == pytest.approx(10_200, rel=0.06)
    assert mean["demand"] == pytest.approx(514, rel=0.08)
    for name, published in zip(
        ("index_1m", "index_10m", "index_1h", "index_6h", "index_1d"),
        (9, 54, 156, 303, 568),
        strict=True,
    ):
        assert mean[name] == pytest.approx(published, rel=0.12), name


def test_philly_against_the_trace_itself(shared_data: Path) -> None:
    real = pd.read_csv(shared_data / "philly" / "jobs.csv.gz", parse_dates=["timestamp"])
    weeks = real[(real["timestamp"] >= "2017-10-02") & (real["timestamp"] < "2017-12-11")]
    ours = pd.concat([philly(0).table, philly(1).table])
    assert len(ours) / 2 == pytest.approx(len(weeks), rel=0.25)
    # The largest distance between the distributions of sizes, and of run times.
    for gpus in (1, 2, 4, 8):
        share = (ours["num_gpus"] <= gpus).mean()
        assert share == pytest.approx((weeks["num_gpus"] <= gpus).mean(), abs=0.03)
    edges = np.geomspace(10, 1e6, 60)
    ours_cdf = np.searchsorted(np.sort(ours["duration_s"].to_numpy()), edges) / len(ours)
    real_cdf = np.searchsorted(np.sort(weeks["duration"].to_numpy()), edges) / len(weeks)
    assert np.abs(ours_cdf - real_cdf).max() < 0.10
    # The busy days of the week are the real ones.
    first = pd.Timestamp("2017-10-02")
    real_s = (weeks["timestamp"] - first).dt.total_seconds().to_numpy()
    ours_days = np.bincount((ours["submit_s"] // 86_400 % 7).astype(int), minlength=7)
    real_days = np.bincount((real_s // 86_400 % 7).astype(int), minlength=7)
    assert np.corrcoef(ours_days, real_days)[0, 1] > 0.7


def test_philly_has_the_cron_virtual_cluster() -> None:
    table = philly(0).table
    cron = table[table["vc"] == "11cb48"]
    assert len(cron) / TEN_WEEKS == pytest.approx(144 + 53, rel=0.02)
    gaps = cron["submit_s"].diff().dropna()
    # Without the strays every gap were 600 s; with them half are, as in the trace (52 %).
    assert gaps.between(595, 605).mean() == pytest.approx(0.52, abs=0.04)
    assert (cron["num_gpus"] == 1).mean() == pytest.approx(0.91, abs=0.01)
    assert cron["duration_s"][cron["num_gpus"] == 1].median() == pytest.approx(75, abs=10)
    assert cron["duration_s"][cron["num_gpus"] == 2].median() == pytest.approx(19, abs=1)


def test_jobs_of_a_burst_share_size_owner_and_length() -> None:
    streams = Streams(5)
    small, large = arrivals.philly_bursts(streams, 28)
    draft = KINDS["philly"].draw(Streams(5), 28, {})
    count = len(small.submit_s)
    frame = pd.DataFrame(
        {
            "burst": small.burst,
            "gpus": draft.num_gpus[:count],
            "vc": draft.more["vc"][:count],
            "log": np.log(draft.duration_s[:count]),
        }
    )
    grouped = frame.groupby("burst")
    assert (grouped["gpus"].nunique() == 1).all()
    assert (grouped["vc"].nunique() == 1).all()
    within = (frame["log"] - grouped["log"].transform("first"))[frame["burst"].duplicated()]
    assert within.std() == pytest.approx(0.65, abs=0.05)
    rows = slice(count, count + len(large.submit_s))
    assert (draft.num_gpus[rows] == 1).all()
    assert np.log(draft.duration_s[rows]).mean() == pytest.approx(7.28, abs=0.6)
    assert set(np.unique(large.size)) <= set(range(10, 1064))


def ks(values: Floats, law: Lognormals) -> float:
    """Kolmogorov-Smirnov distance of whole-second data to a law rounded to whole seconds."""
    seconds, counts = np.unique(values, return_counts=True)
    return float(np.abs(np.cumsum(counts) / counts.sum() - law.cdf(seconds + 0.5)).max())


def test_duration_mixtures_are_the_published_fits(shared_data: Path) -> None:
    real = pd.read_csv(shared_data / "philly" / "jobs.csv.gz")
    published = {1: 0.024, 2: 0.031, 4: 0.027, 8: 0.028, 12: 0.040}
    for gpus, distance in published.items():
        chosen = real["num_gpus"] >= 12 if gpus == 12 else real["num_gpus"] == gpus
        values = real["duration"][chosen].to_numpy(dtype=float)
        assert ks(values, sizes.PHILLY_DURATIONS[gpus]) < distance + 0.002, gpus

    pods = pd.read_csv(shared_data / "openb" / "pods.csv.gz")
    pods["run_s"] = pods["deletion_time"] - pods["scheduled_time"]
    pods = pods[pods["run_s"] > 0]
    gpus_of, shared = pods["num_gpu"], pods["gpu_milli"] < 1000
    classes = (
        (gpus_of == 0, 0.060),
        ((gpus_of == 1) & shared, 0.012),
        ((gpus_of == 1) & ~shared, 0.022),
        (gpus_of > 1, 0.067),
    )
    for law, (chosen, distance) in zip(sizes.OPENB_DURATIONS, classes, strict=True):
        assert ks(pods["run_s"][chosen].to_numpy(dtype=float), law) < distance + 0.002


@pytest.mark.parametrize("gpus", list(sizes.PHILLY_DURATIONS))
def test_draws_follow_their_mixture(gpus: int) -> None:
    law = sizes.PHILLY_DURATIONS[gpus]
    drawn = np.sort(law.draw(Streams(3), "d", 20_000))
    empirical = np.arange(1, len(drawn) + 1) / len(drawn)
    distance = np.abs(empirical - law.cdf(drawn))[drawn < law.longest_s].max()
    assert distance < 1.95 / math.sqrt(len(drawn))  # 0.1 % critical value
    assert drawn[-1] <= law.longest_s


@pytest.mark.parametrize(
    ("text", "mean", "scv"),
    [
        ("exponential:50", 50, 1),
        ("fixed:7", 7, 0),
        ("hyperexponential:20:9", 20, 9),
        ("lognormal:3:0.5", math.exp(3.125), math.exp(0.25) - 1),
        ("pareto:1:1000:1.5", 2.906, None),
        # Minutes: 0.8 (10^3 - 10^1.5) / (1.5 ln 10) + 0.2 (10^4 - 10^3) / ln 10 = 1006.03.
        ("gavel", 60_362, None),
    ],
)
def test_laws_have_their_moments(text: str, mean: float, scv: float | None) -> None:
    law = duration_law(text)
    drawn = law.draw(Streams(1), "x", 400_000)
    assert law.mean_s == pytest.approx(mean, rel=1e-3)
    assert drawn.mean() == pytest.approx(mean, rel=0.03)
    assert (drawn > 0).all()
    if scv is not None:
        assert drawn.var() / drawn.mean() ** 2 == pytest.approx(scv, rel=0.05, abs=1e-9)


def test_clipped_mean_of_a_mixture_is_exact() -> None:
    law = Lognormals(((1.0, 7.94, 2.17),), 4.63e6)
    drawn = law.draw(Streams(0), "x", 2_000_000)
    assert law.mean_s == pytest.approx(float(drawn.mean()), rel=0.02)


def test_openb_runs_as_the_trace_does() -> None:
    found = [statistics(generate("openb", seed=s, days=34), 34) for s in range(3)]
    mean = pd.DataFrame(found).mean()
    assert mean["jobs"] / 34 == pytest.approx(236, rel=0.15)
    assert mean["cv"] == pytest.approx(1.75, abs=0.15)
    published = {"index_1m": 1.4, "index_10m": 2.3, "index_1h": 5.1, "index_6h": 17, "index_1d": 40}
    for name, index in published.items():
        assert mean[name] == pytest.approx(index, rel=0.45), name


def test_openb_classes_shares_and_quality_of_service() -> None:
    table = generate("openb", seed=4, jobs=40_000).table
    gpus, milli = table["num_gpus"], table["gpu_milli"]
    assert (gpus == 0).mean() == pytest.approx(0.133, abs=0.01)
    assert (milli < 1000).mean() == pytest.approx(0.378, abs=0.01)
    assert ((gpus == 1) & (milli == 1000)).mean() == pytest.approx(0.480, abs=0.01)
    assert set(gpus[gpus > 1].unique()) == {2, 4, 8}
    assert (milli[milli < 1000] == 810).mean() == pytest.approx(0.350, abs=0.02)
    assert (table["priority"] == "LS").mean() == pytest.approx(0.57, abs=0.01)
    assert table["cpu_milli"][gpus == 8].unique().tolist() == [88_000]
    assert table["single_node"].all()


def test_gavel_recipe() -> None:
    table = generate("gavel", seed=2, jobs=40_000).table
    for gpus, share in ((1, 0.70), (2, 0.10), (4, 0.15), (8, 0.05)):
        assert (table["num_gpus"] == gpus).mean() == pytest.approx(share, abs=0.01)
    minutes = np.log10(table["duration_s"] / 60)
    assert minutes.min() >= 1.5
    assert minutes.max() <= 4.0
    assert (minutes > 3).mean() == pytest.approx(0.2, abs=0.01)
    gaps = table["submit_s"].diff().dropna()
    assert gaps.mean() == pytest.approx(600, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("kind", list(KINDS))
def test_same_seed_same_bits_and_another_seed_others(kind: str) -> None:
    first = generate(kind, seed=8, jobs=500, users=5, estimates=0.5)
    again = generate(kind, seed=8, jobs=500, users=5, estimates=0.5)
    assert first.digest() == again.digest()
    assert first.digest() != generate(kind, seed=9, jobs=500, users=5, estimates=0.5).digest()


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_longer_trace_begins_with_the_shorter_one(kind: str) -> None:
    short = generate(kind, seed=3, jobs=300, users=7, vcs=3, estimates=1.0)
    for longer in (
        generate(kind, seed=3, jobs=20_000, users=7, vcs=3, estimates=1.0),
        generate(kind, seed=3, days=40.5, users=7, vcs=3, estimates=1.0),
    ):
        assert len(longer) > 300
        assert longer.head(300).digest() == short.digest()


def test_more_options_leave_the_rest_as_it_is() -> None:
    plain = generate("poisson", seed=1, jobs=200).table
    more = generate("poisson", seed=1, jobs=200, users=3, vcs=2, estimates=0.7).table
    for column in ("job_id", "submit_s", "duration_s", "num_gpus"):
        assert plain[column].equals(more[column])


def test_users_estimates_and_virtual_clusters() -> None:
    table = generate("poisson", seed=6, jobs=20_000, users=4, vcs=3, estimates=1.0).table
    over = table["estimate_s"] / table["duration_s"]
    assert over.min() >= 1.0
    assert over.median() == pytest.approx(math.exp(0.6745), rel=0.03)
    shares = table["vc"].value_counts(normalize=True)
    assert shares["vc-00"] == pytest.approx(6 / 11, abs=0.02)
    assert table["user"].str.startswith("vc-0").all()
    assert table["user"].nunique() == 12


def test_days_are_the_length() -> None:
    table = generate("philly", seed=1, days=1.5).table
    assert table["submit_s"].between(0, 1.5 * 86_400, inclusive="left").all()
    assert table["submit_s"].max() > 1.4 * 86_400


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("phily", {"days": 1}, "did you mean 'philly'"),
        ("philly", {}, "either days or jobs"),
        ("philly", {"days": 1, "jobs": 1}, "either days or jobs"),
        ("philly", {"days": 0}, "above 0"),
        ("philly", {"days": math.nan}, "above 0"),
        ("philly", {"jobs": 0}, "expected 1 to"),
        ("philly", {"jobs": 1, "seed": -1}, "seed -1"),
        ("philly", {"jobs": 1, "load": 0.9}, "belong together"),
        ("philly", {"jobs": 1, "duration": "fixed:1"}, "it has none"),
        ("poisson", {"jobs": 1, "duraton": "fixed:1"}, "did you mean 'duration'"),
        ("poisson", {"jobs": 1, "duration": "fixed"}, "expected fixed:SECONDS"),
        ("poisson", {"jobs": 1, "duration": "fixed:x"}, "expected fixed:SECONDS"),
        ("poisson", {"jobs": 1, "duration": "fixed:-1"}, "out of range"),
        ("poisson", {"jobs": 1, "duration": "hyperexponential:5:0.5"}, "SCV 1 to 1e6"),
        ("poisson", {"jobs": 1, "duration": "weibull:1"}, "unknown law"),
        ("poisson", {"jobs": 1, "gpus": "1:x"}, "COUNT:WEIGHT"),
        ("poisson", {"jobs": 1, "gpus": "1,1"}, "each once"),
        ("poisson", {"jobs": 1, "gpus": "1:0"}, "not all 0"),
        ("poisson", {"jobs": 1, "jobs_per_hour": 0}, "jobs_per_hour"),
        ("poisson", {"days": 200_000, "jobs_per_hour": 1e6}, "more than 100000000 jobs"),
        ("poisson", {"days": 0.001, "jobs_per_hour": 0.001}, "no job in"),
        ("poisson", {"jobs": 1, "users": -1}, "users -1"),
        ("poisson", {"jobs": 1, "estimates": -1.0}, "estimates"),
    ],
)
def test_what_cannot_be_meant_is_said(
    kind: str, arguments: dict[str, object], message: str
) -> None:
    arguments = {"seed": 0, **arguments}
    with pytest.raises(UsageError, match=message):
        generate(kind, **arguments)  # type: ignore[arg-type]


@given(st.text(max_size=30))
def test_any_text_is_a_law_or_a_usage_error(text: str) -> None:
    for parse in (duration_law, gpu_counts):
        try:
            parse(text)
        except UsageError:
            continue


@given(
    st.sampled_from(["exponential", "fixed", "hyperexponential", "lognormal", "pareto"]),
    st.lists((st.floats() | st.floats(0.001, 1e4)).map(repr), max_size=4),
)
def test_any_numbers_make_a_law_or_a_usage_error(name: str, numbers: list[str]) -> None:
    try:
        law = duration_law(":".join([name, *numbers]))
    except UsageError:
        return
    drawn = law.draw(Streams(0), "x", 100)
    assert 0 <= law.mean_s <= 1e12
    assert np.isfinite(drawn).all()
    assert (drawn >= 0).all()


def test_a_million_jobs_take_seconds() -> None:
    # No clock here: what must hold is that nothing is drawn job by job. 200,000 jobs draw from
    # each stream once.
    calls: list[str] = []

    class Counting(Streams):
        def __call__(self, name: str) -> np.random.Generator:
            calls.append(name)
            return super().__call__(name)

    KINDS["philly"].draw(Counting(1), 200, {})
    assert len(calls) == len(set(calls)) < 60
