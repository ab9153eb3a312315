"""``tandem run`` from the front door: what it answers to what cannot be run, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tandem
from traces import RunLog

TRACE = "job_id,submit_s,duration_s,num_gpus,gpu_type\na,0,10,2,\nb,1,5,4,\nc,2,5,1,\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with one trace in it, and the process in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(TRACE)
    return tmp_path


def run(*words: str) -> int:
    return tandem.main(["run", "t.csv", "--no-report", "--quiet", *words])


CLUSTER = ("--cluster", "1x4:v100")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--cluster", "bad"), 2, "bad"),
        (("--cluster", "0x8"), 2, "counts of at least 1"),
        (("--cluster", "1x4:v100:0"), 2, "at least one node"),
        (("--cluster", "9999999x8"), 2, "at most"),
        (("--cluster", "missing.csv"), 1, "missing.csv"),
        ((), 2, "--cluster"),
        ((*CLUSTER, "--policy", "fio"), 2, "did you mean 'fifo'"),
        ((*CLUSTER, "--policy", "fifo:x=1"), 2, "no parameter 'x'"),
        ((*CLUSTER, "--policy", "sjf:by=size"), 2, "expected one of time, gpu-time"),
        ((*CLUSTER, "--policy", "sjf:blocks=maybe"), 2, "expected true or false"),
        ((*CLUSTER, "--policy", "sjf:by"), 2, "not of the form name=value"),
        ((*CLUSTER, "--policy", "tiresias:thresholds=7;3"), 2, "ascending numbers"),
        ((*CLUSTER, "--policy", "tiresias:thresholds="), 2, "ascending numbers"),
        ((*CLUSTER, "--policy", "tiresias:knob=-1"), 2, "knob is -1"),
        ((*CLUSTER, "--policy", "tiresias:knob=nan"), 2, "knob is nan"),
        ((*CLUSTER, "--policy", "las:quantum_gpu_s=0"), 2, "expected more than 0"),
        ((*CLUSTER, "--policy", "las:quantum_gpu_s=x"), 2, "expected a number"),
        ((*CLUSTER, "--policy", "srtf:estimates=psychic"), 2, "expected true, user, none or noisy"),
        ((*CLUSTER, "--policy", "srtf:estimates=none"), 2, "estimates is none"),
        ((*CLUSTER, "--policy", "srtf:estimates=user"), 1, "has no user estimate"),
        ((*CLUSTER, "--policy", "toy.py:Toy"), 2, "no such file"),
        ((*CLUSTER, "--placement", "cont"), 2, "did you mean 'count'"),
        ((*CLUSTER, "--cost", "star=1"), 2, "did you mean 'start'"),
        ((*CLUSTER, "--cost", "start"), 2, "expected NAME=VALUE"),
        ((*CLUSTER, "--cost", "start=soon"), 2, "expected a number"),
        ((*CLUSTER, "--cost", "start=-1"), 2, "cost start_s is -1"),
        ((*CLUSTER, "--cost", "start=nan"), 2, "cost start_s is nan"),
        ((*CLUSTER, "--cost", "save=inf"), 2, "cost save_s is inf"),
        ((*CLUSTER, "--speed", "v100=0"), 2, "speed of v100 is 0"),
        ((*CLUSTER, "--speed", "v100=nan"), 2, "speed of v100 is nan"),
        ((*CLUSTER, "--speed", "v100"), 2, "expected NAME=VALUE"),
        ((*CLUSTER, "--speed", "v10=2"), 2, "v100"),
        ((*CLUSTER, "--across-nodes", "0"), 2, "across_nodes is 0"),
        ((*CLUSTER, "--across-racks", "-1"), 2, "across_racks is -1"),
        ((*CLUSTER, "--checkpoint", "0"), 2, "checkpoint interval is 0"),
        ((*CLUSTER, "--checkpoint", "x"), 2, "--checkpoint"),
        ((*CLUSTER, "--seed", "-1"), 2, "seed is -1"),
        ((*CLUSTER, "--seed", "1" + "0" * 40), 2, "2^64 - 1"),
        ((*CLUSTER, "--seed", "x"), 2, "--seed"),
        ((*CLUSTER, "--until", "-1"), 2, "until is -1"),
        ((*CLUSTER, "--until", "nan"), 2, "until is nan"),
        ((*CLUSTER, "--sample", "0"), 2, "sample_s is 0"),
        ((*CLUSTER, "--sample", "nan"), 2, "sample_s is nan"),
        ((*CLUSTER, "--jobs", "-1"), 2, "expected 0 or more"),
        ((*CLUSTER, "--misfits", "maybe"), 2, "misfits"),
        ((*CLUSTER, "--unknown"), 2, "unknown option --unknown"),
        (("--cluster", "1x2:v100"), 1, "1 of 3 jobs fit nowhere"),
        ((*CLUSTER, "--out", "t.csv"), 2, "exists and is not a directory"),
        ((*CLUSTER, "--out", "t.csv/run"), 1, "t.csv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_refusals(
    here: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, said: str
) -> None:
    assert run(*words) == code
    errors = capsys.readouterr().err
    assert errors.startswith("tandem: error: ")
    assert said in errors
    assert errors.count("\n") == 1
    left = sorted(p.relative_to(here).as_posix() for p in here.rglob("*"))
    assert [p for p in left if p != "runs"] == ["t.csv"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "t.csv"),
        ("job_id,submit_s,num_gpus\na,0,1\n", "duration_s"),
        ("job_id,submit_s,duration_s,num_gpus\na,0,,1\n", "no run time"),
        ("job_id,submit_s,duration_s,num_gpus\na,0,x,1\n", "duration_s"),
        ("job_id,submit_s,duration_s,num_gpus\na,0,-1,1\n", "duration_s"),
        ("job_id,submit_s,duration_s,num_gpus\na,0,1,1\na,0,1,1\n", "each id once"),
        ("job_id,submit_s,duration_s,num_gpus\na,0,1,1.5\n", "num_gpus"),
    ],
)
def test_traces_that_cannot_be_replayed(
    here: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    (here / "t.csv").write_text(content)
    assert run(*CLUSTER, "--out", "out") == 1
    errors = capsys.readouterr().err
    assert errors.startswith("tandem: error: ")
    assert "t.csv" in errors
    assert said in errors
    assert not (here / "out").exists()


def test_a_run_is_not_replaced_unasked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*CLUSTER, "--out", "out") == 0
    before = (here / "out" / "run.json").read_bytes()
    assert run(*CLUSTER, "--out", "out") == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (here / "out" / "run.json").read_bytes() == before
    # Nor when the new run fails half way.
    assert run(*CLUSTER, "--out", "out", "--overwrite", "--policy", "srtf:estimates=user") == 1
    assert (here / "out" / "run.json").read_bytes() == before
    assert run(*CLUSTER, "--out", "out", "--overwrite", "--policy", "srtf") == 0
    assert RunLog.open(here / "out").record["policy"]["name"] == "srtf"
    assert sorted(p.name for p in here.iterdir()) == ["out", "t.csv"]


def test_a_directory_of_something_else_is_left_alone(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").write_text("...")
    assert run(*CLUSTER, "--out", "mine", "--overwrite") == 2
    assert "not a run directory" in capsys.readouterr().err
    assert [p.name for p in (here / "mine").iterdir()] == ["thesis.tex"]


def test_a_policy_in_a_file_that_fails(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "toy.py").write_text(
        "from policies import Policy\n\n\nclass Toy(Policy):\n    name = 'toy'\n\n"
        "    def plan(self, view):\n        return 1 / 0\n"
    )
    assert run(*CLUSTER, "--policy", "toy.py:Toy", "--out", "out") == 1
    errors = capsys.readouterr().err
    assert "policy 'toy' failed at 0 s: plan() raised ZeroDivisionError" in errors
    assert "(toy.py, line 8)" in errors
    assert not (here / "out").exists()


def test_misfits_that_are_rejected(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--cluster", "1x2", "--misfits", "reject", "--out", "out") == 0
    assert "1 jobs" in capsys.readouterr().err
    jobs = RunLog.open(here / "out").table("jobs").set_index("job_id")
    assert jobs["status"].to_dict() == {"a": "finished", "b": "rejected", "c": "finished"}


def test_all_the_options_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "--policy=srtf --cost=start=1 --cost=save=2 --speed=v100=2 --across-nodes=0.5"
        " --checkpoint=3 --lose-on-preempt --seed=5 --jobs=2 --sample=1 --name=all --out=out --json"
    )
    assert tandem.main(["run", "t.csv", "--no-report", *CLUSTER, *words.split()]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert "mean_jct_s" in json.dumps(metrics)
    log = RunLog.open(here / "out")
    assert log.record["seed"] == 5
    assert log.record["name"] == "all"
    assert log.record["model"]["speeds"] == {"v100": 2.0}
    assert log.record["model"]["costs"]["start_s"] == 1.0
    # a: 1 s to start, 10 s at double speed; stopped at 1 s by b, with nothing done and nothing to
    # save. b starts until 2 s and runs 5 s at double speed; then a starts anew for 1 s.
    jobs = log.table("jobs").set_index("job_id")
    assert jobs["finish_s"].to_dict() == {"a": 10.5, "b": 4.5}
    assert jobs["preemptions"].to_dict() == {"a": 1, "b": 0}


def test_stopping_early_says_partial(here: Path) -> None:
    assert run(*CLUSTER, "--until", "4", "--out", "out") == 0
    log = RunLog.open(here / "out")
    assert log.partial
    jobs = log.table("jobs").set_index("job_id")
    assert jobs["status"].to_dict() == {"a": "running", "b": "waiting", "c": "waiting"}
    assert jobs["queueing_s"].to_dict() == {"a": 0.0, "b": 3.0, "c": 2.0}
    assert jobs["service_gpu_s"].to_dict() == {"a": 8.0, "b": 0.0, "c": 0.0}


def test_an_empty_trace_is_a_run_of_nothing(here: Path) -> None:
    assert run(*CLUSTER, "--jobs", "0", "--out", "out") == 0
    log = RunLog.open(here / "out")
    assert not log.partial
    assert len(log.table("jobs")) == 0
