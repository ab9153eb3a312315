"""Named random streams, all spawned from one seed.

A component asks for its stream by name and gets its own ``numpy.random.Generator``; so adding a
component, or drawing more from one, changes no other. Each stream is drawn from once, in one
call, which also makes a longer trace begin with the shorter one of the same seed.
"""

from __future__ import annotations

import zlib

import numpy as np

from traces.errors import UsageError


class Streams:
    """``streams(name)`` is the generator of that component; the same name gives the same bits."""

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise UsageError(f"seed {seed}: a seed is 0 or more")
        self.seed = seed

    def __call__(self, name: str) -> np.random.Generator:
        """Return the generator of the component ``name``, at its beginning."""
        # The spawn key is what SeedSequence.spawn counts up; naming the child instead keeps its
        # bits when other components come and go.
        child = np.random.SeedSequence(self.seed, spawn_key=(zlib.crc32(name.encode()),))
        return np.random.default_rng(child)
