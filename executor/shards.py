"""Which device owns which rows of the sparse tables, when a job's tables are sharded.

A generation of p devices has p *shards*, one a device. The shard of a row is a function of (job,
table, id) and p alone::

    key   = mix(base + id G)        base = base_of(job's seed, "shards of " + table)
    shard = jump consistent hash of key over p    (Lamping and Veach, arXiv 1406.2294, 2014)

with ``mix``, ``base_of`` and G of ``models.sparse.initial``. Jump hashing moves a row from p to
p + 1 shards only if it moves to the new one, that is one row in p + 1. Its one division is of
float64 and rounded as IEEE 754 says, so every device computes the same.

Which device has which shard number changes no bit. A device that stays keeps its number when there
is still such a shard, so rows move as little as jump hashing lets them. With *mirrors* the device
of shard s + 1 holds the rows of shard s too.

Leaves out: weights, for devices of unequal memory; more than one mirror.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from models.sparse.initial import GOLDEN, base_of, mix, signed

_JUMP = 2862933555777941757  # the multiplier of the paper's generator
_TOP = 33  # its draw is the upper 31 of 64 bits

Device = TypeVar("Device", bound=Hashable)


def shard_of(base: int, ids: Tensor, shards: int) -> Tensor:
    """Return the shard (N,) int64, 0 to ``shards`` - 1, of each of ``ids`` (N,) int64. Pure.

    ``base`` is ``shard_base(seed, table)``.
    """
    shard = torch.zeros_like(ids)
    key = mix(ids * signed(GOLDEN) + base)
    live = torch.arange(len(ids), device=ids.device)
    while len(live) and shards > 1:
        key = key * _JUMP + 1
        draw = ((key >> _TOP) & ((1 << (64 - _TOP)) - 1)) + 1
        here = shard[live]
        onward = ((here + 1).double() * (2.0**31 / draw.double())).long()
        stays = onward >= shards
        moves = (~stays).nonzero().squeeze(1)
        live, key = live[moves], key[moves]
        shard[live] = onward[moves]
    return shard


def shard_base(seed: int, table: str) -> int:
    """Return what separates the hashes of jobs and tables."""
    return base_of(seed, f"shards of {table}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """A job's tables are sharded. ``mirrored``: each shard is held by two devices."""

    mirrored: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardMap:
    """The shards of a generation: ``numbers[i]`` is that of device i."""

    numbers: tuple[int, ...]
    mirrored: bool

    @property
    def size(self) -> int:
        """Shards, and devices."""
        return len(self.numbers)

    @property
    def devices(self) -> tuple[int, ...]:
        """The device of each shard."""
        found = [0] * self.size
        for device, number in enumerate(self.numbers):
            found[number] = device
        return tuple(found)

    def held(self, device: int) -> tuple[int, ...]:
        """The shards that a device holds, the one that it owns first."""
        own = self.numbers[device]
        return (own, (own - 1) % self.size) if self.mirrored and self.size > 1 else (own,)

    def mirror(self, device: int) -> int | None:
        """The device that holds a device's own shard too."""
        if not self.mirrored or self.size == 1:
            return None
        return self.devices[(self.numbers[device] + 1) % self.size]


def assigned(before: Sequence[int | None], mirrored: bool) -> ShardMap:
    """Return shards for devices that had these numbers before (None: none).

    A device keeps its number if there are so many shards; the rest are given out in order.
    """
    numbers: list[int | None] = [None] * len(before)
    taken: set[int] = set()
    for device, number in enumerate(before):
        if number is not None and number < len(before) and number not in taken:
            numbers[device] = number
            taken.add(number)
    free = iter([n for n in range(len(before)) if n not in taken])
    return ShardMap(
        numbers=tuple(next(free) if n is None else n for n in numbers), mirrored=mirrored
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Rows that a device holds: ``numbers``, its own first, of ``size`` shards.

    ``holding``: what the rows of all devices that belong together are called. A device may have
    several while a job changes its devices.
    """

    holding: int
    size: int
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept(Generic[Device]):
    """A holding of which every shard lives: its name and size, and who holds which shards."""

    holding: int
    size: int
    numbers: Mapping[Device, tuple[int, ...]]


def covering(found: Mapping[Device, Iterable[Held]]) -> Kept[Device] | None:
    """Return the latest holding of which the devices that live have every shard, or None."""
    by_name: dict[int, dict[Device, Held]] = {}
    for device, holdings in found.items():
        for held in holdings:
            by_name.setdefault(held.holding, {})[device] = held
    for name in sorted(by_name, reverse=True):
        holders = by_name[name]
        size = next(iter(holders.values())).size
        if {n for held in holders.values() for n in held.numbers} == set(range(size)):
            return Kept(
                holding=name, size=size, numbers={d: held.numbers for d, held in holders.items()}
            )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshuffle:
    """Rows on their way from one holding to another, as all of a party know it.

    ``held``: which of ``size_before`` shards each member has; ``wanted``: which of ``size_after``
    shards it shall have, nothing for one that leaves.
    """

    held: tuple[tuple[int, ...], ...]
    size_before: int
    wanted: tuple[tuple[int, ...], ...]
    size_after: int

    def offered(self, member: int) -> tuple[int, ...]:
        """The shards that a member sends: those of which it is the first holder."""
        return tuple(
            shard
            for shard in self.held[member]
            if all(shard not in held for held in self.held[:member])
        )

    def sent(self, member: int, to: int, before: Tensor, after: Tensor) -> Tensor:
        """Mark (N,) which rows go from a member to another: wanted there, and not there yet.

        ``before``, ``after`` (N,): the rows' shards in the one and the other holding.
        """
        return (
            _among(before, self.offered(member))
            & ~_among(before, self.held[to])
            & _among(after, self.wanted[to])
        )

    def kept(self, member: int, after: Tensor) -> Tensor:
        """Mark (N,) which of the rows that a member has stay with it."""
        return _among(after, self.wanted[member])


def _among(shards: Tensor, some: Sequence[int]) -> Tensor:
    found = torch.zeros_like(shards, dtype=torch.bool)
    for number in some:
        found |= shards == number
    return found
