"""What an execution keeps beside its run directory, so that a crash loses no finished work.

A folder (``OUT.work`` beside the run directory) with ``jobs.parquet``, the workload as canonical
jobs; ``execution.json``, with what it was executed; ``journal.jsonl``, a line for each job that
finished and a beat every few seconds, written and flushed as things happen; and ``checkpoints/``,
a folder for each job. ``tandem execute --resume OUT`` reads it whatever ended the execution before.

And the lock: one execution at a time per machine, because two would measure each other. It is the
kernel's (``flock``), so it goes with the process that held it, however that ended. It lies in the
folder for temporary files, or in ``TANDEM_LOCK_DIR``.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from executor import checkpoint as files
from executor.errors import ExecutorError
from traces import DataError, Workload
from traces.workload import Source

BEAT_S = 2.0


def folder_of(out: Path) -> Path:
    """Return where an execution into the run directory ``out`` keeps its journal."""
    return out.with_name(out.name + ".work")


class Journal:
    """The journal of one execution, being written; see the module."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        workload: Workload,
        resumes: Left | None = None,
    ) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise ExecutorError(
                "an execution was left there",
                where=folder,
                expected="another --out; or to go on with it (tandem execute --resume"
                f" {folder.with_suffix('')}); or to remove it",
            ) from None
        workload.table.to_parquet(folder / "jobs.parquet")
        text = json.dumps(dict(settings), indent=1, default=str)
        (folder / "execution.json").write_text(text + "\n", encoding="utf-8")
        self._file = (folder / "journal.jsonl").open("a", encoding="utf-8")
        self._beat_s = 0.0
        if resumes is not None:
            for line in resumes.finished.values():
                self._write(line | {"time_s": 0.0})
            if (resumes.folder / "checkpoints").is_dir():
                (resumes.folder / "checkpoints").rename(folder / "checkpoints")
            shutil.rmtree(resumes.folder)

    def checkpoints_of(self, job_id: str) -> Path:
        """Return the folder of a job's checkpoints."""
        return self.folder / "checkpoints" / _safe(job_id)

    def finished(self, job_id: str, time_s: float, step: int, loss: float, digest: str) -> None:
        """Keep that a job has finished, and with which bits."""
        self._write(
            {"finished": job_id, "time_s": time_s, "step": step, "loss": loss, "digest": digest}
        )

    def beat(self, time_s: float) -> None:
        """Keep the time, every few seconds."""
        if time_s - self._beat_s >= BEAT_S:
            self._beat_s = time_s
            self._write({"time_s": time_s})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; what was written stays."""
        self._file.close()

    def remove(self) -> None:
        """Remove the folder: the execution came to its end."""
        shutil.rmtree(self.folder)


class Left:
    """What an earlier execution left: its settings, its jobs, and how far each had come.

    Raises DataError for a folder that is none.
    """

    def __init__(self, out: Path) -> None:
        self.folder = folder_of(out)
        path = self.folder / "execution.json"
        try:
            self.settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            lines = (self.folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise DataError(
                "no execution was left here",
                file=self.folder,
                expected=f"the run directory of an execution that did not end ({error})",
            ) from error
        self.finished: dict[str, dict[str, Any]] = {}
        self.time_s = 0.0
        for text in lines:
            try:
                line = json.loads(text)
            except ValueError:
                break  # the crash cut it short
            self.time_s = max(self.time_s, float(line["time_s"]))
            if "finished" in line:
                self.finished[line["finished"]] = line

    def workload(self) -> Workload:
        """Return the jobs that had not finished, submitted as long after the crash as they were.

        Those that had been submitted before are submitted at once.
        """
        table = pd.read_parquet(self.folder / "jobs.parquet")
        left = table[~table["job_id"].isin(list(self.finished))].copy()
        left["submit_s"] = (left["submit_s"] - self.time_s).clip(lower=0.0)
        note = f"{len(self.finished)} of {len(table)} jobs had finished before"
        source = Source(path=str(self.folder), format="execution", notes=(note,))
        return Workload(left.reset_index(drop=True), source)

    def step_of(self, job_id: str) -> int:
        """Return the step of a job's last checkpoint, 0 if there is none."""
        found = files.checkpoints(self.folder / "checkpoints" / _safe(job_id))
        return found[-1] if found else 0


@contextmanager
def alone() -> Iterator[None]:
    """Hold this machine's lock for executions. Raises ExecutorError if somebody holds it."""
    folder = Path(os.environ.get("TANDEM_LOCK_DIR") or tempfile.gettempdir())
    path = folder / f"tandem-execute-{os.getuid()}.lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            raise ExecutorError(
                "another execution runs on this machine",
                where=path,
                value=f"process {holder}" if holder else None,
                expected="to wait until it has ended: two would measure each other",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _safe(job_id: str) -> str:
    """A job's name as a folder's."""
    return "".join(c if c.isalnum() or c in "-_" else f"%{ord(c):02x}" for c in job_id)
