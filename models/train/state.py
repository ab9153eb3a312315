"""Checkpoints: the whole state of a run after a step, from which it goes on with the same bits.

A checkpoint is a folder ``step-00000015`` with ``tables.bin`` (``models.sparse.state``) and
``dense.bin``: parameters, buffers and AdamW's moments by name, and as its meta data the step, the
seed, the configuration, the maker of the network and a digest of the data. Both files end in the
SHA-256 of what is before; ``dense.bin`` repeats that of its ``tables.bin``, so the halves of two
checkpoints are never taken for one. A folder is made under a temporary name, flushed and renamed:
one that has its name is whole. No generator state is saved, because all that is random in a step
is a function of (seed, step).

Leaves out: checkpoints in parts, and those of another network's shape.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.sparse.arrayfile import flush_folder, read_arrays, replacing, write_arrays
from models.sparse.state import load_tables, save_tables
from models.train.step import State

KIND = b"TANDEMCK"
SCHEMA = 1
_DIGEST = 32  # bytes of SHA-256 at the end of a file of arrays
_NAME = re.compile(r"^step-(\d{8,})$")
_HIDDEN = ".part-"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def checkpoints(folder: str | Path) -> list[int]:
    """Return after which steps there are checkpoints in a folder, the earliest first."""
    found = [_NAME.match(p.name) for p in Path(folder).glob("step-*") if p.is_dir()]
    return sorted(int(match[1]) for match in found if match)


def path_of(folder: str | Path, step: int) -> Path:
    """Return where the checkpoint after ``step`` steps lies."""
    return Path(folder) / f"step-{step:08d}"


def save(state: State, folder: str | Path, run: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Write the checkpoint of ``state`` and remove all but the latest ``keep``; return its path.

    ``run``: JSON values that say which run it is; ``load`` wants the same. One of this step that
    is there already stays as it is: it holds the same bits. Raises ModelError, with the older
    checkpoints as they were, if look-ups are waiting for a step or the disk refuses.
    """
    folder = Path(folder)
    target = path_of(folder, state.step)
    if state.tables.pending:
        raise ModelError("look-ups are waiting for a step", where=target, expected="save after it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not target.is_dir():
            _make(state, target, run)
        for step in checkpoints(folder)[: -max(keep, 1)]:
            _remove(path_of(folder, step))
    except OSError as error:
        raise ModelError(f"cannot be written: {error.strerror}", where=target) from error
    return target


def _make(state: State, target: Path, run: Mapping[str, Any]) -> None:
    making = target.with_name(f"{_HIDDEN}{secrets.token_hex(6)}")
    making.mkdir()
    try:
        save_tables(state.tables, making / "tables.bin")
        meta = {"run": dict(run), "step": state.step, "tables": _last(making / "tables.bin")}
        with replacing(making / "dense.bin") as file:
            write_arrays(file, KIND, SCHEMA, meta, dict(_dense(state)))
        flush_folder(making)
        making.rename(target)
        flush_folder(target.parent)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _remove(path: Path) -> None:
    """Take the name away first, so that what has the name is whole until the end."""
    hidden = path.with_name(f"{_HIDDEN}{secrets.token_hex(6)}")
    path.rename(hidden)
    shutil.rmtree(hidden)


def load(state: State, folder: str | Path, run: Mapping[str, Any], step: int | None = None) -> None:
    """Make ``state`` the one that was saved after ``step`` steps; None takes the latest.

    Raises ModelError, with ``state`` as it was, if there is none, if it is cut short, damaged or of
    another schema, or if it is of a run other than ``run``.
    """
    known = checkpoints(folder)
    if not known or (step is not None and step not in known):
        raise ModelError(
            "no such checkpoint" if known else "no checkpoint",
            where=Path(folder),
            value=step,
            expected=f"after one of the steps {known}" if known else "a folder that has one",
        )
    path = path_of(folder, known[-1] if step is None else step)
    meta, arrays = read_arrays(path / "dense.bin", KIND, SCHEMA)
    _check_run(meta["run"], dict(run), path / "dense.bin")
    _check_shapes(state, arrays, path / "dense.bin")
    if _last(path / "tables.bin") != meta["tables"]:
        raise ModelError(
            "damaged, or of another checkpoint",
            where=path / "tables.bin",
            expected="the file that was saved with dense.bin",
        )
    load_tables(state.tables, path / "tables.bin")
    _restore(state, arrays)
    state.step = int(meta["step"])


def dense_state(state: State) -> dict[str, Tensor]:
    """Return parameters and buffers by name, AdamW's moments under ``optimizer/``; not copied."""
    return dict(_dense(state))


def _dense(state: State) -> Iterator[tuple[str, Tensor]]:
    for name, value in state.network.state_dict().items():
        yield f"network/{name}", value
    for name, parameter in state.network.named_parameters():
        for moment, value in sorted(state.optimizer.state.get(parameter, {}).items()):
            yield f"optimizer/{name}/{moment}", value


def _check_run(saved: Any, wanted: dict[str, Any], path: Path) -> None:
    for place, found, expected in _differences(saved, wanted, ""):
        raise ModelError(
            "the checkpoint is of another run",
            where=f"{path}, {place}",
            value=found,
            expected=repr(expected),
        )


def _differences(saved: Any, wanted: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for key in sorted(saved.keys() | wanted.keys()):
            inner = f"{place}.{key}" if place else str(key)
            yield from _differences(saved.get(key), wanted.get(key), inner)
    elif saved != wanted:
        yield place, saved, wanted


def _check_shapes(state: State, arrays: Mapping[str, Tensor], path: Path) -> None:
    wanted = {f"network/{n}": v for n, v in state.network.state_dict().items()}
    moments = any(name.startswith("optimizer/") for name in arrays)
    for name, parameter in state.network.named_parameters() if moments else ():
        wanted |= {f"optimizer/{name}/{moment}": parameter for moment in _MOMENTS[1:]}
        wanted[f"optimizer/{name}/step"] = torch.zeros(())
    if sorted(wanted) != sorted(arrays):
        odd = sorted(wanted.keys() ^ arrays.keys())[0]
        raise ModelError("the tensors of another network", where=path, value=odd)
    for name, value in wanted.items():
        found = arrays[name]
        if (found.shape, found.dtype) != (value.shape, value.dtype):
            raise ModelError(
                "a tensor of another shape",
                where=f"{path}, {name}",
                value=f"{found.dtype} {tuple(found.shape)}",
                expected=f"{value.dtype} {tuple(value.shape)}",
            )


@torch.no_grad()
def _restore(state: State, arrays: Mapping[str, Tensor]) -> None:
    for name, value in state.network.state_dict().items():
        value.copy_(arrays[f"network/{name}"])
    state.optimizer.state.clear()
    for name, parameter in state.network.named_parameters():
        if f"optimizer/{name}/step" not in arrays:
            continue
        moments = {m: arrays[f"optimizer/{name}/{m}"] for m in _MOMENTS}
        # AdamW keeps its count of steps on the CPU.
        state.optimizer.state[parameter] = {
            m: value.clone() if m == "step" else value.to(parameter.device, copy=True)
            for m, value in moments.items()
        }


def _last(path: Path) -> str:
    """The digest with which a file of arrays ends; "" if it is too short to have one."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _DIGEST))
            return file.read().hex()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=path) from error
