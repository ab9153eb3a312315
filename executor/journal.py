"""What an execution keeps beside its run directory, so that a crash loses no finished work.

A folder (``OUT.work`` beside the run directory) with ``jobs.parquet``, the workload as canonical
jobs; ``execution.json``, with what it was executed; ``journal.jsonl``, a line for everything that
goes into the run's log and a beat every few seconds, written and flushed as things happen; and
``checkpoints/``, a folder for each job. ``tandem execute --resume OUT`` reads it whatever ended the
execution before (``executor.past`` says what the lines are).

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
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from executor import checkpoint as files
from executor import events as e
from executor.errors import ExecutorError
from executor.past import Past
from traces import DataError, Workload
from traces.runwriter import remove_abandoned
from traces.workload import Source

BEAT_S = 2.0
FORMAT = 2


def folder_of(out: Path) -> Path:
    """Return where an execution into the run directory ``out`` keeps its journal."""
    return out.with_name(out.name + ".work")


class Journal:
    """The journal of one execution, being written; see the module.

    ``resumes``: what it goes on with, which is then gone. The folder appears whole, under its name,
    so whenever this is cut short one of the two is there with all that was left.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        workload: Workload,
        resumes: Left | None = None,
    ) -> None:
        self.folder = folder
        if folder.exists():
            raise ExecutorError(
                "an execution was left there",
                where=folder,
                expected="another --out; or to go on with it (tandem execute --resume"
                f" {folder.with_suffix('')}); or to remove it",
            )
        making = folder.with_name(folder.name + ".part")
        if making.exists():  # of one that was killed here
            shutil.rmtree(making)
        making.mkdir(parents=True)
        workload.table.to_parquet(making / "jobs.parquet")
        text = json.dumps({"journal": FORMAT, **settings}, indent=1, default=str)
        (making / "execution.json").write_text(text + "\n", encoding="utf-8")
        before = [] if resumes is None else resumes.past.lines
        lines = "".join(json.dumps(line) + "\n" for line in before)
        (making / "journal.jsonl").write_text(lines, encoding="utf-8")
        if resumes is not None and (resumes.folder / "checkpoints").is_dir():
            held, here = resumes.folder / "checkpoints", making / "checkpoints"
            shutil.copytree(held, here, copy_function=_linked)
        making.rename(folder)
        if resumes is not None:
            shutil.rmtree(resumes.folder)
            remove_abandoned(resumes.out)  # we hold the lock: whoever wrote it is dead
        self._beat_s = 0.0 if resumes is None else resumes.past.time_s
        self._file = (folder / "journal.jsonl").open("a", encoding="utf-8")

    def checkpoints_of(self, job_id: str) -> Path:
        """Return the folder of a job's checkpoints."""
        return self.folder / "checkpoints" / _safe(job_id)

    def finished(self, done: e.Finished, time_s: float) -> None:
        """Keep that a job has finished, and with which bits."""
        said = {"finished": done.job_id, "step": done.step, "loss": done.loss}
        self.keep(time_s, said | {"digest": done.digest})

    def keep(self, time_s: float, line: Mapping[str, Any]) -> None:
        """Keep something that happened."""
        self._write({"time_s": time_s, **line})

    def due(self, time_s: float) -> bool:
        """Whether it is time for a beat."""
        return time_s - self._beat_s >= BEAT_S

    def beat(self, time_s: float, line: Mapping[str, Any]) -> None:
        """Keep the time, and how things stand."""
        self._beat_s = time_s
        self.keep(time_s, line)

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

    ``past``: what its journal says. ``gap_s``: seconds since its last line. Raises DataError for a
    folder that is none, or of another version.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = folder_of(out)
        path = self.folder / "execution.json"
        try:
            self.settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            journal = self.folder / "journal.jsonl"
            lines = journal.read_text(encoding="utf-8").splitlines()
            self.gap_s = max(0.0, time.time() - journal.stat().st_mtime)
        except (OSError, ValueError) as error:
            raise DataError(
                "no execution was left here",
                file=self.folder,
                expected=f"the run directory of an execution that did not end ({error})",
            ) from error
        if self.settings.get("journal") != FORMAT:
            raise DataError(
                "left by another version",
                file=path,
                column="journal",
                value=self.settings.get("journal"),
                expected=f"{FORMAT}; go on with the version that left it",
            )
        read = []
        for text in lines:
            try:
                read.append(json.loads(text))
            except ValueError:
                break  # the crash cut it short
        self.past = Past(read)

    def workload(self) -> Workload:
        """Return all jobs of the execution, those that are over included."""
        table = pd.read_parquet(self.folder / "jobs.parquet")
        note = f"{len(self.past.over)} of {len(table)} jobs were over at {self.past.time_s:g} s"
        source = Source(path=str(self.folder), format="execution", notes=(note,))
        return Workload(table, source)

    def resumptions(self) -> list[dict[str, float]]:
        """What the record says of gaps: where each is on the axis of time, and how long it was."""
        before: list[dict[str, float]] = self.settings["resumptions"]
        return [*before, {"at_s": self.past.time_s, "gap_s": round(self.gap_s, 3)}]

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


def _linked(source: str, target: str) -> None:
    """Give a file a second name, which costs no room; where that cannot be, a copy of it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _safe(job_id: str) -> str:
    """A job's name as a folder's."""
    return "".join(c if c.isalnum() or c in "-_" else f"%{ord(c):02x}" for c in job_id)
