"""The journal of an execution: whenever it is cut short, nothing that was left is lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from executor import checkpoint as files
from executor import events as e
from executor.errors import ExecutorError
from executor.journal import Journal, Left, folder_of
from tests.executor.test_execute import job
from traces import DataError, Workload

JOBS = Workload.from_jobs([job(name, duration_s=5.0) for name in "ab"])


class CutError(BaseException):
    """The process is killed here."""


def left_behind(out: Path) -> Left:
    """An execution that was killed: job b has finished, job a has a checkpoint after 40 steps."""
    journal = Journal(folder_of(out), {"seed": 1}, JOBS)
    done = e.Finished(job_id="b", at_s=3.0, step=40, loss=0.5, digest="its digest")
    journal.finished(done, 3.0)
    path = files.path_of(journal.checkpoints_of("a"), 40)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"state")
    journal.close()
    return Left(out)


def cut_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be killed before the change of the file system with this number."""
    changes = 0

    def cut(real: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **keywords: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes == number:
                raise CutError
            return real(*args, **keywords)

        return instead

    for owner, name in (
        *((Path, name) for name in ("mkdir", "write_text", "rename", "open")),
        *((os, name) for name in ("link", "unlink", "rmdir")),
        (pd.DataFrame, "to_parquet"),
    ):
        monkeypatch.setattr(owner, name, cut(getattr(owner, name)))


def whole(out: Path) -> bool:
    """Whether this is left, with all that there was."""
    try:
        left = Left(out)
    except DataError:
        return False
    assert left.workload().table["job_id"].tolist() == ["a", "b"]
    assert left.past.finished["b"].digest == "its digest"
    return left.step_of("a") == 40


@pytest.mark.parametrize("number", range(1, 17))
def test_a_resume_that_is_killed_at_any_point_can_be_done_again(
    tmp_path: Path, number: int
) -> None:
    left = left_behind(tmp_path / "run")
    resumed = tmp_path / "run-resumed"
    workload = left.workload()
    with pytest.MonkeyPatch.context() as patch:
        cut_at(number, patch)
        try:
            Journal(folder_of(resumed), {"seed": 1}, workload, left).close()
        except CutError:
            pass
        else:
            assert number > 10
            assert not left.folder.exists()
    if folder_of(resumed).exists():
        assert whole(resumed)
        with pytest.raises(ExecutorError, match=r"resume .*run-resumed"):
            Journal(folder_of(resumed), {"seed": 1}, workload, left)
    else:
        assert whole(tmp_path / "run")
        Journal(folder_of(resumed), {"seed": 1}, workload, Left(tmp_path / "run")).close()
        assert whole(resumed)
        assert [path.name for path in tmp_path.iterdir()] == ["run-resumed.work"]


def test_where_files_have_one_name_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = left_behind(tmp_path / "run")

    def refuses(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuses)
    Journal(folder_of(tmp_path / "on"), {"seed": 1}, left.workload(), left).close()
    assert whole(tmp_path / "on")
