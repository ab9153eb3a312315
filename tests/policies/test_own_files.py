"""A policy file that is wrong is told so in one line, whatever it does."""

from __future__ import annotations

from pathlib import Path

import pytest

import tandem
from policies.registry import make_policy
from traces import UsageError

HEAD = "from policies import Plan, Policy\n\n\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise SystemExit(5)", "SystemExit: 5"),
        ("x = (", "SyntaxError"),
        ("import nonexistent_module", "ModuleNotFoundError"),
        ("X = 1", "no Policy named 'X'; it has no Policy"),
        (HEAD + "class X(Policy):\n    def __init__(self, x): ...", "cannot be made: TypeError"),
        (HEAD + "class X(Policy):\n    def __init__(self): 1 / 0", "ZeroDivisionError"),
        (HEAD + "class X(Policy):\n    def says(self): return 5", "'int' object is not iterable"),
    ],
)
def test_a_file_that_gives_no_policy(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(text + "\n")
    with pytest.raises(UsageError) as caught:
        make_policy(f"{file}:X")
    assert words in str(caught.value)


def test_a_parameter_of_a_policy_that_has_none() -> None:
    with pytest.raises(UsageError, match="'fifo' has no parameter 'x'; it has none"):
        make_policy("fifo:x=1")


@pytest.mark.parametrize(
    "body",
    [
        "pass",
        "def plan(self, view): return self.plan(view)",
        "def plan(self, view): raise SystemExit(3)",
    ],
)
def test_a_policy_without_a_plan_fails_the_check_and_not_the_checker(
    body: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.py"
    file.write_text(f"{HEAD}class X(Policy):\n    {body}\n")
    assert tandem.main(["policies", "check", f"{file}:X"]) == 1
    assert "FAILED  valid" in capsys.readouterr().out
    trace = tmp_path / "jobs.csv"
    trace.write_text("job_id,submit_s,num_gpus,duration_s\na,0,1,100\n")
    run = ["run", str(trace), "--cluster", "1x4", "--policy", f"{file}:X", "--quiet"]
    assert tandem.main([*run, "--out", str(tmp_path / "out")]) == 1
    assert "policy 'X' failed at 0 s: plan() raised" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
