"""Where to compute, and how: a device by name, threads of the CPU, deterministic algorithms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

from models.errors import ModelError


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Use so many threads of the CPU meanwhile (None: as it is). ModelError for less than one."""
    before = torch.get_num_threads()
    if number is not None:
        if number < 1:
            raise ModelError("no such number", where="threads", value=number, expected="1 or more")
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_device(name: str) -> str:
    """Return the name of a device that works. Raises ModelError for any other."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch says both
        text = str(error).splitlines()[0]
        raise ModelError(f"cannot be used: {text}", where=f"device {name}") from error
    return name


@contextmanager
def deterministic(device: torch.device, *, strict: bool = True) -> Iterator[None]:
    """Switch torch's deterministic algorithms on meanwhile (or off, unless ``strict``).

    What has none raises. New memory is not filled first, as torch would do to hide who reads it
    unwritten: nothing here does, the tests that compare bits would notice, and it costs a tenth.
    """
    if device.type == "cuda":
        # Read when cuBLAS is first used; without it, torch refuses deterministic products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = torch.utils.deterministic
    before, filled = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    # Sets the same switch as use_deterministic_algorithms, without importing torch's compiler.
    torch.set_deterministic_debug_mode("error" if strict else "default")
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        settings.fill_uninitialized_memory = filled
