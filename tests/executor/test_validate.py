"""``tandem validate`` as a whole: what it leaves, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tandem
from executor.devices import parse_lanes
from executor.machine import probe
from traces import Profile
from traces.profile import ModelProfile
from traces.profile_file import save

COLUMNS = "job_id,submit_s,num_gpus,num_workers,min_gpus,max_gpus,model,batch_size,total_steps\n"
JOBS = "a,0,1,2,1,2,dense:width=16,4,30\nb,0.1,1,2,1,2,dense:width=16,4,20\n"


def test_a_validation_holds_both_worlds_and_a_third_at_the_runs_own_pace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_LOCK_DIR", str(tmp_path))
    (tmp_path / "jobs.csv").write_text(COLUMNS + JOBS)
    kind = parse_lanes("cpu", probe())[0].gpu_type
    measured = ModelProfile(
        microbatch_s={4: {kind: 0.1}}, start_s=0.1, rescale_s=0.05, checkpoint_s=0.01
    )
    save(Profile(models={"dense:width=16": measured}, origin="measured"), tmp_path / "p.json")
    out = tmp_path / "out"
    command = ["validate", str(tmp_path / "jobs.csv"), "--policy", "easyscale", "--devices", "cpu"]
    command += ["--profile", str(tmp_path / "p.json"), "--at-pace", "--quiet", "--out", str(out)]
    assert tandem.main([*command, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["same_bits"] == 2
    (pair,) = json.loads((out / "validation.json").read_text())["pairs"]
    before, after = (one[kind] for one in pair["paces"])
    # The profile says 100 ms where it is about one: the pace before corrects that, and what is left
    # for the run's own is a factor near 1.
    assert max(before, after) < 0.5
    assert 0.2 < pair["pace"] < 5.0
    known, paced = (
        Profile.load(out / f"profile-easyscale-1{end}.json").rates("dense:width=16", 4)
        for end in ("", "-paced")
    )
    assert known.seconds(kind) == pytest.approx(0.1 * before)
    assert paced.seconds(kind) == pytest.approx(known.seconds(kind) * pair["pace"])
    assert {p.name for p in out.iterdir()} >= {
        *("executed-easyscale-1", "simulated-easyscale-1", "paced-easyscale-1", "fidelity.html"),
        *("profile.json", "profile-easyscale-1-around.json", "digests.json"),
    }
    assert tandem.main(command) == 2
    assert "holds a validation already" in capsys.readouterr().err
    assert tandem.main([*command[:-1], str(tmp_path / "other"), "--repeats", "0"]) == 2
    assert "--repeats 0" in capsys.readouterr().err
