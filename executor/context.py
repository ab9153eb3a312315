"""The context of a logical worker (EasyScaleThread): all that is its own between two steps.

EasyScale (SC'23), section on the EST context: virtual rank; states of Python's, NumPy's, torch's
and the device's random generators; its place in the data; buffers that depend on the rank, such as
the running statistics of batch normalisation. Parameters and optimizer state are not in it: they
are equal on all ranks between steps and exist once per device. Nor are gradients: a switch happens
after backward, and they are added up at once.

A context is a value. ``enter`` makes the process's generators and the module's buffers those of a
context, ``captured`` reads them back; between the two the rank's micro-batch runs. The generators
belong to the process, so ``borrowed_generators`` lends them to one device at a time and puts back
what was there.

Leaves out: state a module keeps elsewhere (``executor.moduletask`` refuses it), and generator
objects that the user's code makes for itself; its data source should keep those in its place.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from executor.errors import ExecutorError
from executor.packing import pack, unpack

GENERATORS = ("python", "numpy", "torch", "device")
_LOCK = threading.RLock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One logical worker after ``step`` steps.

    ``place``: its place in the data, JSON values. ``generators``: states by name of ``GENERATORS``,
    those that its task uses. ``buffers``: rank-dependent buffers by name, copies on the CPU.
    """

    rank: int
    step: int
    place: Any = None
    generators: Mapping[str, Any] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the context as checked bytes; a few kilobytes beside its buffers."""
        # In one order, so that equal contexts make equal bytes wherever they have been.
        arrays = {f"buffer/{name}": value for name, value in sorted(self.buffers.items())}
        states: dict[str, Any] = {}
        for name, state in sorted(self.generators.items()):
            array, rest = _flat_state(name, state)
            arrays[f"generator/{name}"] = array
            states[name] = rest
        meta = {"rank": self.rank, "step": self.step, "place": self.place, "generators": states}
        return pack(meta, arrays)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Context:
        """Read what ``to_bytes`` wrote. Raises ExecutorError if it is damaged."""
        meta, arrays = unpack(data, "context of a logical worker")
        return cls(
            rank=meta["rank"],
            step=meta["step"],
            place=meta["place"],
            generators={
                name: _state_of(name, arrays[f"generator/{name}"], rest)
                for name, rest in meta["generators"].items()
            },
            buffers={
                name.removeprefix("buffer/"): value
                for name, value in arrays.items()
                if name.startswith("buffer/")
            },
        )


def seed_of(seed: int, rank: int) -> int:
    """Return the 63-bit seed with which a logical worker's generators begin."""
    high, low = np.random.SeedSequence([seed, rank]).generate_state(2)
    return int(high) << 31 | int(low) >> 1


def first_context(
    rank: int,
    seed: int,
    *,
    generators: tuple[str, ...],
    buffers: Mapping[str, Tensor],
    place: Any,
    device: torch.device | None = None,
) -> Context:
    """Return the context before the first step: generators seeded with ``seed_of(seed, rank)``."""
    with borrowed_generators(generators, device):
        seed_generators(seed_of(seed, rank), generators, device)
        states = _states(generators, device)
    copies = {name: value.detach().cpu().clone() for name, value in buffers.items()}
    return Context(rank=rank, step=0, place=place, generators=states, buffers=copies)


def seed_generators(seed: int, generators: tuple[str, ...], device: torch.device | None) -> None:
    """Seed the process's generators as a logical worker's begin; for reference runs as well."""
    if "python" in generators:
        random.seed(seed)
    if "numpy" in generators:
        np.random.seed(seed % 2**32)  # noqa: NPY002  the global generator is what users' code draws from
    if "torch" in generators:
        torch.default_generator.manual_seed(seed)
    if "device" in generators and device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@torch.no_grad()
def enter(context: Context, buffers: Mapping[str, Tensor], device: torch.device | None) -> None:
    """Make generators and live ``buffers`` those of a context; call inside borrowed_generators."""
    if context.buffers.keys() != buffers.keys():
        odd = sorted(context.buffers.keys() ^ buffers.keys())[0]
        raise ExecutorError(
            "the context is of another module", where=f"rank {context.rank}", value=odd
        )
    _set_states(context.generators, device)
    for name, live in buffers.items():
        live.copy_(context.buffers[name])


def captured(
    before: Context, place: Any, buffers: Mapping[str, Tensor], device: torch.device | None
) -> Context:
    """Return the context after the micro-batch that began with ``before``."""
    return Context(
        rank=before.rank,
        step=before.step + 1,
        place=place,
        generators=_states(tuple(before.generators), device),
        buffers={name: live.detach().cpu().clone() for name, live in buffers.items()},
    )


@contextmanager
def borrowed_generators(
    generators: tuple[str, ...], device: torch.device | None = None, *, owned: bool = False
) -> Iterator[None]:
    """Lend the process's generators to one device at a time, and put their states back after.

    Devices that are threads of one process take turns, also those whose tasks keep no state there:
    such a task may still draw from a generator that it seeds itself. With ``owned`` the process has
    no other use for its generators, and they are left as they are.
    """
    if owned:
        yield
        return
    with _LOCK:
        before = _states(generators, device)
        try:
            yield
        finally:
            _set_states(before, device)


def _states(generators: tuple[str, ...], device: torch.device | None) -> dict[str, Any]:
    states: dict[str, Any] = {}
    if "python" in generators:
        states["python"] = random.getstate()
    if "numpy" in generators:
        states["numpy"] = np.random.get_state(legacy=True)  # noqa: NPY002
    if "torch" in generators:
        states["torch"] = torch.default_generator.get_state()
    if "device" in generators and device is not None and device.type == "cuda":
        states["device"] = torch.cuda.get_rng_state(device)
    return states


def _set_states(states: Mapping[str, Any], device: torch.device | None) -> None:
    if "python" in states:
        random.setstate(states["python"])
    if "numpy" in states:
        np.random.set_state(states["numpy"])  # noqa: NPY002
    if "torch" in states:
        torch.default_generator.set_state(states["torch"])
    if "device" in states and device is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["device"], device)


def _flat_state(name: str, state: Any) -> tuple[Tensor, Any]:
    """A generator's state as one array, and the rest as JSON values."""
    if name == "python":
        version, words, gauss = state
        return torch.from_numpy(np.array(words, dtype=np.uint32).view(np.int32)), [version, gauss]
    if name == "numpy":
        kind, words, position, has_gauss, gauss = state
        array = torch.from_numpy(np.array(words, dtype=np.uint32).view(np.int32))
        return array, [kind, int(position), int(has_gauss), float(gauss)]
    return state, None


def _state_of(name: str, array: Tensor, rest: Any) -> Any:
    if name == "python":
        version, gauss = rest
        return version, tuple(array.numpy().view(np.uint32).tolist()), gauss
    if name == "numpy":
        kind, position, has_gauss, gauss = rest
        return kind, array.numpy().view(np.uint32), position, has_gauss, gauss
    return array
