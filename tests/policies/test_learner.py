"""Learning in the loop: wrong beliefs are corrected while jobs run, growth in vain is undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policies.learner import Learning
from policies.model import Costs, Model
from policies.rates import Distortion
from simulator.run import Result, simulate
from tandem import main
from traces import Profile, RunLog, UsageError, Workload, load
from traces.profile import ModelProfile, ReduceCost
from traces.profile_sources import load_profile

EQUAL = Profile(
    models={"m": ModelProfile(microbatch_s={8: {"v100": 1.0, "t4": 1.0}})}, origin="measured"
)
COSTS = Costs(start_s=5.0, rescale_s=5.0)


def job(**row: Any) -> dict[str, Any]:
    plain = {"job_id": "a", "submit_s": 0.0, "duration_s": 100.0, "num_gpus": 4, "num_workers": 4}
    plain |= {"max_gpus": 4, "mixes_types": True, "model": "m", "batch_size": 8}
    return plain | {"gpu_type": "v100"} | row


def run(
    workload: Workload,
    cluster: str,
    truth: Model,
    believed: Model,
    learning: Learning | None,
    out: Path | None = None,
) -> Result:
    return simulate(
        workload, cluster, policy="easyscale", model=truth, believed=believed, learning=learning,
        out=out,
    )  # fmt: skip


def test_a_slow_device_is_found_out(tmp_path: Path) -> None:
    # A V100 and a T4 are believed equal, the T4 takes three times as long. 2 + 2 logical workers
    # take 6 s a step, 100 s of work 5 + 600 s. 3 + 1 take 3 s.
    truth = Model(profile=EQUAL, costs=COSTS, distortion=Distortion(of_type=(("t4", 3.0),)))
    believed = Model(profile=EQUAL, costs=COSTS)
    one, cluster = Workload.from_jobs([job()]), "1x1:v100,1x1:t4"
    blind = run(one, cluster, truth, believed, None)
    assert blind.jobs["finish_s"][0] == 605.0
    learns = run(one, cluster, truth, believed, Learning(report_s=10.0), tmp_path / "run")
    assert learns.jobs["finish_s"][0] < 5 + 300 + 2 * (10 + 5 + 10)
    last = RunLog.open(tmp_path / "run").table("allocations").iloc[-2:]
    assert {r.gpu_type: list(r.workers) for r in last.itertuples()} == {"v100": [3], "t4": [1]}
    assert learns.record["learning"] == {"report_s": 10.0, "fallback": True, "horizon_s": 300.0}


@pytest.mark.parametrize("fallback", [True, False])
def test_a_growth_that_did_not_help_is_undone(tmp_path: Path, fallback: bool) -> None:
    # Nobody has told the policy that reductions are slow: on four GPUs a step takes 1 s and 6 s of
    # them, on one GPU 4 s.
    slow = ModelProfile(microbatch_s={8: {"v100": 1.0, "t4": 1.0}}, gradient_bytes=4e9)
    sends = Profile(
        models={"m": slow}, origin="measured", reduce=ReduceCost(latency_s=0.0, bytes_per_s=1e9)
    )
    truth, believed = Model(profile=sends, costs=COSTS), Model(profile=EQUAL, costs=COSTS)
    other = job(job_id="b", num_gpus=3, num_workers=3, max_gpus=3, min_gpus=3, duration_s=40.0)
    grown = job(submit_s=1.0, duration_s=300.0)
    learning = Learning(report_s=10.0, fallback=fallback)
    run(Workload.from_jobs([grown, other]), "1x4:v100", truth, believed, learning, tmp_path / "run")
    rows = RunLog.open(tmp_path / "run").table("allocations")
    sizes = [len(gpus) for gpus in rows[rows["job_id"] == "a"]["gpus"]]
    assert sizes[:2] == [1, 4]
    assert (sizes[2:3] == [1]) == fallback
    assert 4 not in sizes[2:]


def test_true_beliefs_change_nothing() -> None:
    model = Model(profile=EQUAL, costs=COSTS)
    some = Workload.from_jobs(
        [job(), job(job_id="b", submit_s=20.0, num_workers=2, max_gpus=2, num_gpus=2)]
    )
    blind = run(some, "1x2:v100,1x2:t4", model, model, None)
    learns = run(some, "1x2:v100,1x2:t4", model, model, Learning(report_s=10.0))
    assert learns.jobs["finish_s"].tolist() == blind.jobs["finish_s"].tolist()
    assert learns.record["counts"]["decisions"] == blind.record["counts"]["decisions"]


@pytest.mark.parametrize(("bias", "noise", "seed"), [(0.6, 0.0, 2), (0.3, 0.5, 2)])
def test_learning_beats_not_learning(
    shared_data: Path, bias: float, noise: float, seed: int
) -> None:
    profile = load_profile(shared_data / "easyscale" / "profile_fitted.json")
    path = shared_data / "easyscale" / "workload.csv"
    jobs = load(path, "easyscale", options={"duplicates": "artifact"})
    costs = Costs(start_s=20.0, rescale_s=20.0)
    wrong = Distortion(seed=seed, bias=bias, noise=noise)
    truth = Model(profile=profile, costs=costs, distortion=wrong)
    believed = Model(profile=profile, costs=costs)
    cluster = "4x8:v100,2x8:p100,2x8:t4"
    blind = run(jobs, cluster, truth, believed, None)
    learns = run(jobs, cluster, truth, believed, Learning())
    assert (learns.jobs["status"] == "finished").all()
    assert learns.jobs["jct_s"].mean() < 0.75 * blind.jobs["jct_s"].mean()


def test_drift_is_of_the_time_a_stay_begins() -> None:
    drifts = Distortion(seed=1, drift=1.0, drift_period_s=1000.0, drift_step_s=100.0)
    model = Model(profile=EQUAL, distortion=drifts)
    later = [job(), job(job_id="b", submit_s=500.0)]
    found = simulate(Workload.from_jobs(later), "1x4:v100", policy="fifo", model=model).jobs
    took = (found["finish_s"] - found["start_s"]).tolist()
    assert took[0] != took[1]
    steady = simulate(Workload.from_jobs(later), "1x4:v100", model=Model(profile=EQUAL)).jobs
    assert (steady["finish_s"] - steady["start_s"]).tolist() == [100.0, 100.0]


def test_what_learning_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Workload.from_jobs([job()])
    with pytest.raises(UsageError, match="needs a profile"):
        simulate(one, "1x4:v100", policy="easyscale", learning=Learning())
    with pytest.raises(UsageError, match="companion"):
        simulate(one, "1x4:v100", model=Model(profile=EQUAL), intra="even", learning=Learning())
    with pytest.raises(UsageError, match="report_s is 0"):
        Learning(report_s=0.0)
    path = tmp_path / "jobs.csv"
    path.write_text("job_id,submit_s,duration_s,num_gpus\na,0,1,1\n")
    assert main(["run", str(path), "--cluster", "1x1", "--learn", "5", "--no-report"]) == 2
    assert "--profile" in capsys.readouterr().err
