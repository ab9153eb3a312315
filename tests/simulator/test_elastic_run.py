"""``tandem run`` with elastic jobs: rules, profiles, what is believed, records, clear errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tandem
from policies.replay import Replay
from traces import Profile, RunLog, Workload
from traces.profile import ModelProfile

CLUSTER = "2x4:v100,1x4:t4"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    times = {"conv": {8: {"v100": 1.0, "t4": 3.0}}, "text": {4: {"v100": 2.0, "t4": 2.5}}}
    for name, factor in (("truth", 1.0), ("rumour", 2.0)):
        Profile(
            models={
                model: ModelProfile(
                    microbatch_s={
                        batch: {t: s * (factor if t == "t4" else 1.0) for t, s in row.items()}
                        for batch, row in rows.items()
                    }
                )
                for model, rows in times.items()
            },
            origin="fitted",
        ).save(tmp_path / f"{name}.json")
    rows = [
        {"job_id": f"job{i}", "submit_s": 20.0 * i, "duration_s": 60.0 + i, "num_gpus": 1 + i % 4}
        for i in range(12)
    ]
    Workload.from_jobs(rows).table.to_csv(tmp_path / "jobs.csv", index=False)
    return tmp_path


def run(*options: str) -> int:
    return tandem.main(
        [
            *("run", "jobs.csv", "--cluster", CLUSTER, "--policy", "easyscale"),
            *("--out", "run", "--no-report", "--quiet", *options),
        ]
    )


ELASTIC = ("--profile", "truth.json", "--elastic", "max=2,mix=text")


def test_a_trace_made_elastic(folder: Path) -> None:
    assert run(*ELASTIC, "--cost", "rescale=5", "--cost", "start=2") == 0
    log = RunLog.open("run")
    jobs = log.table("jobs")
    assert (jobs["status"] == "finished").all()
    assert (jobs["max_gpus"] == 2 * jobs["num_gpus"]).all()
    assert set(jobs["model"]) == {"conv", "text"}
    assert log.record["model"]["profile_sha256"] == Profile.load("truth.json").sha256()
    assert log.record["intra"]["name"] == "companion"
    assert any("12 gangs made elastic" in note for note in log.record["workload"]["notes"])
    stays = log.table("allocations")
    assert all(sum(w) > 0 for w in stays["workers"])


def test_it_can_be_explained_afterwards(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*ELASTIC, "--cost", "rescale=5") == 0
    view = Replay(RunLog.open("run")).until(130.0)
    held = {job.job_id: job.held for job in view.running}
    stays = RunLog.open("run").table("allocations")
    now = stays[(stays["start_s"] <= 130.0) & (stays["end_s"] > 130.0)]
    counted = now.assign(n=now["gpus"].map(len)).groupby("job_id")["n"].sum()
    assert {job: sum(counts) for job, counts in held.items()} == counted.to_dict()
    assert all(0.0 < job.rate <= 2.0 for job in view.running)
    assert tandem.main(["explain", "run", "job11", "--at", "221"]) == 0
    assert capsys.readouterr().out


def test_what_is_believed_differs_from_what_is(folder: Path) -> None:
    assert run(*ELASTIC) == 0
    honest = RunLog.open("run").table("jobs")["finish_s"].tolist()
    assert run(*ELASTIC, "--believed", "rumour.json", "--overwrite") == 0
    record = RunLog.open("run").record
    misled = RunLog.open("run").table("jobs")["finish_s"].tolist()
    assert record["believed"]["profile_sha256"] != record["model"]["profile_sha256"]
    assert misled != honest


def test_even_seats_are_slower_on_mixed_types(folder: Path) -> None:
    means = {}
    for intra in ("companion", "even"):
        assert run(*ELASTIC, "--intra", intra, "--overwrite") == 0
        means[intra] = RunLog.open("run").table("jobs")["jct_s"].mean()
    assert means["companion"] <= means["even"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--elastic", "max=0.5"), 2, "max"),
        (("--profile", "truth.json", "--elastic", "models=txt"), 2, "text"),
        (("--elastic", "most=2"), 2, "models"),
        (("--believed", "rumour.json"), 2, "--profile"),
        (("--intra", "companion"), 2, "profile"),
        (("--profile", "jobs.csv"), 1, "JSON"),
        ((*ELASTIC, "--intra", "compagnon"), 2, "companion"),
    ],
)
def test_what_is_refused(
    folder: Path,
    options: tuple[str, ...],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*options) == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_job_that_no_plan_can_serve(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its only type has no times in the profile: said at once, with what there is."""
    only = {"models": {"conv": {"microbatch_s": {"8": {"v100": 1.0}}}}}
    document = json.loads(Path("truth.json").read_text())
    document["models"] = {"conv": document["models"]["conv"] | only["models"]["conv"]}
    Path("partial.json").write_text(json.dumps(document), encoding="utf-8")
    table = Workload.from_jobs(
        [{"job_id": "a", "submit_s": 0.0, "duration_s": 9.0, "num_gpus": 2, "gpu_type": "t4"}]
    ).table
    table.to_csv("jobs.csv", index=False)
    assert run("--profile", "partial.json", "--elastic", "max=1") in {1, 2}
    said = capsys.readouterr().err
    assert "t4" in said
    assert "v100" in said
