"""Messages of any size from every device to every other, in one exchange if they are as before.

Gloo moves tensors whose sizes both sides know. A message's size is known to its sender only, so
each pair of devices has *room* for as much as it sent the last time and some more: the beginning of
a message travels in it, after its size. What is longer goes in a second exchange, and since every
device hears from every other whether it has such messages, all know whether there is one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch

from executor.exchange import Exchange

_HEAD = struct.Struct("<qq")  # whether this device has longer messages than room; the size of this
_STEP = 64


class Mail:
    """Messages of one kind, of about the same sizes step after step, in one generation."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._room_out = [0] * exchange.size
        self._room_in = [0] * exchange.size

    def swap(self, messages: Sequence[bytes]) -> list[bytes]:
        """Give each device its message and return what each gave us; all devices at once.

        Raises PeerLostError.
        """
        size, index = self._exchange.size, self._exchange.index
        if size == 1:
            return list(messages)
        others = [device for device in range(size) if device != index]
        longer = any(len(messages[d]) > self._room_out[d] for d in others)
        parts = [b""] * size
        for d in others:
            room = self._room_out[d]
            parts[d] = _HEAD.pack(longer, len(messages[d])) + messages[d][:room].ljust(room, b"\0")
        heads = [0 if d == index else _HEAD.size + self._room_in[d] for d in range(size)]
        found = self._swapped(parts, heads)
        found[index] = messages[index]
        told = {d: _HEAD.unpack(found[d][: _HEAD.size]) for d in others}
        for d in others:
            found[d] = found[d][_HEAD.size : _HEAD.size + told[d][1]]
        if longer or any(flag for flag, _ in told.values()):
            rests = [b"" if d == index else messages[d][self._room_out[d] :] for d in range(size)]
            sizes = [0 if d == index else told[d][1] - len(found[d]) for d in range(size)]
            for d, rest in enumerate(self._swapped(rests, sizes)):
                found[d] += rest
        for d in others:
            self._room_out[d], self._room_in[d] = _room(len(messages[d])), _room(told[d][1])
        return found

    def _swapped(self, parts: Sequence[bytes], sizes: Sequence[int]) -> list[bytes]:
        """Send ``parts`` and receive as many bytes of each device."""
        sending = torch.frombuffer(bytearray(b"".join(parts)) or bytearray(1), dtype=torch.uint8)
        receiving = torch.empty(max(sum(sizes), 1), dtype=torch.uint8)
        lengths = [len(part) for part in parts]
        self._exchange.all_to_all(
            receiving[: sum(sizes)], sending[: sum(lengths)], sizes, lengths
        ).wait()
        received, at = receiving.numpy().tobytes(), 0
        found = []
        for size in sizes:
            found.append(received[at : at + size])
            at += size
        return found


def _room(size: int) -> int:
    """Room for a message like one of ``size`` bytes: an eighth more, whole steps."""
    return -(-size * 9 // (8 * _STEP)) * _STEP
