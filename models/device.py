"""Where to compute: a device by name, and how many threads of the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
