"""What a report says of a run's record."""

from __future__ import annotations

from pathlib import Path

from policies.model import Model
from reports.provenance import facts
from simulator.run import simulate
from traces import Profile, RunLog, Workload
from traces.profile import ModelProfile


def test_a_profile_is_named_and_its_tables_are_left_to_the_record(tmp_path: Path) -> None:
    measured = ModelProfile(microbatch_s={16: {"v100": 0.123456}})
    profile = Profile(models={"net": measured}, origin="measured", source="a machine")
    elastic = {"num_workers": 1, "max_gpus": 1, "batch_size": 16, "total_steps": 10}
    jobs = Workload.from_jobs(
        [{"job_id": "a", "submit_s": 0.0, "num_gpus": 1, "model": "net", **elastic}]
    )
    simulate(jobs, "1x1:v100", model=Model(profile=profile), out=tmp_path / "run")
    log = RunLog.open(tmp_path / "run")
    said = " ".join(value for _, values in facts(log) for value in values)
    assert "measured, from a machine; models: net" in said
    assert "0.123456" not in said
    assert "0.123456" in str(log.record)
