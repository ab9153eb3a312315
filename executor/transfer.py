"""A replica's state on its way to a newcomer: from peer to peer, over the generation's group.

Small tensors travel packed together in one checked message, large ones each from its own memory, so
a large model is not copied to be sent. State is never on the agent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from executor.exchange import Exchange
from executor.packing import pack, unpack
from models.sparse.arrayfile import DTYPES

_LARGE_BYTES = 1 << 20


def send_state(
    exchange: Exchange, targets: Sequence[int], step: int, state: Mapping[str, Tensor]
) -> None:
    """Send a task's state to devices that are receiving it. Raises PeerLostError."""
    large = {n: v for n, v in state.items() if v.numel() * v.element_size() >= _LARGE_BYTES}
    listed = [[n, str(v.dtype).removeprefix("torch."), list(v.shape)] for n, v in large.items()]
    small = {n: v for n, v in state.items() if n not in large}
    message = torch.frombuffer(
        bytearray(pack({"step": step, "large": listed}, small)), dtype=torch.uint8
    )
    parts = chain((torch.tensor([len(message)]), message), map(_bytes_on_cpu, large.values()))
    # All at once: the wire need not wait for us between two of them, nor for what a GPU still has.
    for sending in [exchange.send(part, target) for part in parts for target in targets]:
        sending.wait()


def receive_state(exchange: Exchange, source: int) -> tuple[int, dict[str, Tensor]]:
    """Return (step, state) as a device sends it. Raises PeerLostError."""
    length = torch.zeros(1, dtype=torch.int64)
    exchange.receive(length, source).wait()
    message = torch.empty(int(length), dtype=torch.uint8)
    exchange.receive(message, source).wait()
    meta, state = unpack(message.numpy().tobytes(), f"state from device {source}")
    coming = []
    for name, dtype_name, shape in meta["large"]:
        state[name] = torch.empty(shape, dtype=DTYPES[dtype_name])
        flat = state[name].view(-1).view(torch.uint8)
        coming.append(exchange.receive(flat, source))
    for receiving in coming:
        receiving.wait()
    return int(meta["step"]), state


def _bytes_on_cpu(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
