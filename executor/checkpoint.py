"""Checkpoints of a job: one checked file after a step, from which it goes on on any devices.

A file ``step-00000012.ckpt`` holds all shared state of the task, the contexts of all logical
workers, and as meta data the job's identity: its name, the task's spec, the number of logical
workers and the order of reduction. The worker map is not in it. Files are those of
``models.sparse.arrayfile``: a kind and version in front, a SHA-256 at the end, written under a
temporary name, flushed and renamed. So one that has its name is whole, and a disk that fills up or
a machine that stops in the middle leaves the ones before. No pickles.

Leaves out: files in parts, and writing while the next step runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from executor.context import Context
from executor.errors import ExecutorError
from models.errors import ModelError
from models.sparse.arrayfile import read_arrays, replacing, write_arrays

KIND = b"TANDEMEX"
SCHEMA = 1
_NAME = re.compile(r"^step-(\d{8,})\.ckpt$")
_LEFT_OVER = re.compile(r"^\.step-\d{8,}\.ckpt\.[0-9a-f]{12}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a file holds: state by name and packed contexts by rank, after ``step`` steps."""

    step: int
    identity: Mapping[str, Any]
    state: Mapping[str, Tensor]
    contexts: Mapping[int, bytes]


def path_of(folder: str | Path, step: int) -> Path:
    """Return where the checkpoint after ``step`` steps lies."""
    return Path(folder) / f"step-{step:08d}.ckpt"


def checkpoints(folder: str | Path) -> list[int]:
    """Return after which steps a folder has checkpoints, the earliest first."""
    if not Path(folder).is_dir():
        return []
    found = [_NAME.match(path.name) for path in Path(folder).iterdir()]
    return sorted(int(match[1]) for match in found if match)


def write(
    folder: str | Path,
    checkpoint: Checkpoint,
    *,
    keep: int = 2,
    before_rename: Callable[[], object] | None = None,
) -> Path:
    """Write a checkpoint, then remove all but the latest ``keep``; return its path.

    ``before_rename`` is called when all is written and nothing has its name yet. Raises
    ExecutorError, with the older checkpoints as they were, if a context is missing or the disk
    refuses.
    """
    workers = int(checkpoint.identity["num_workers"])
    if sorted(checkpoint.contexts) != list(range(workers)):
        raise ExecutorError(
            "contexts are missing",
            where=f"checkpoint after step {checkpoint.step}",
            value=sorted(checkpoint.contexts),
            expected=f"those of {workers} logical workers",
        )
    arrays = dict(checkpoint.state)
    for rank, data in sorted(checkpoint.contexts.items()):
        arrays[f"context/{rank}"] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    meta = {"step": checkpoint.step, "identity": dict(checkpoint.identity)}
    path = path_of(folder, checkpoint.step)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            write_arrays(file, KIND, SCHEMA, meta, arrays)
            if before_rename is not None:
                before_rename()
        for step in checkpoints(folder)[: -max(keep, 1)]:
            path_of(folder, step).unlink(missing_ok=True)
    except ModelError as error:
        raise ExecutorError(str(error)) from error
    except OSError as error:
        raise ExecutorError(f"cannot be written: {error.strerror}", where=path) from error
    return path


def read(path: str | Path, identity: Mapping[str, Any] | None = None) -> Checkpoint:
    """Return what a file holds.

    Raises ExecutorError if it is cut short, damaged, of another version, or, when ``identity`` is
    given, of another job; the text names the first difference.
    """
    try:
        meta, arrays = read_arrays(Path(path), KIND, SCHEMA)
    except ModelError as error:
        raise ExecutorError(str(error)) from error
    found = meta["identity"]
    if identity is not None:
        for key in sorted(found.keys() | identity.keys()):
            if found.get(key) != identity.get(key):
                raise ExecutorError(
                    "the checkpoint is of another job",
                    where=f"{path}, {key}",
                    value=found.get(key),
                    expected=repr(identity.get(key)),
                )
    contexts = {
        int(name.removeprefix("context/")): arrays.pop(name).numpy().tobytes()
        for name in [name for name in arrays if name.startswith("context/")]
    }
    for data in contexts.values():
        Context.from_bytes(data)
    return Checkpoint(step=int(meta["step"]), identity=found, state=arrays, contexts=contexts)


def clean(folder: str | Path) -> None:
    """Remove what a writer that was killed left under temporary names."""
    if not Path(folder).is_dir():
        return
    for path in Path(folder).iterdir():
        if _LEFT_OVER.match(path.name):
            path.unlink(missing_ok=True)
