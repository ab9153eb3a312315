"""Messages between devices: whole, whatever their sizes were before, and few exchanges."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import torch
from torch import Tensor

from executor.board import Board
from executor.context import Context
from executor.errors import GarbageError
from executor.exchange import Exchange
from executor.mail import Mail
from executor.notice import Notice, audit, read, written
from models.sparse.gradients import SparseGradient


def swapped(size: int, rounds: list[list[list[bytes]]]) -> tuple[list[list[list[bytes]]], int]:
    """What each device received in each round, and how many bytes device 0 sent in the last."""

    def device(index: int) -> tuple[list[list[bytes]], int]:
        exchange = Exchange(board.address, "mail", index, size)
        mail, found, sent = Mail(exchange), [], 0
        for messages in rounds:
            before = exchange.sent_bytes
            found.append(mail.swap(messages[index]))
            sent = exchange.sent_bytes - before
        exchange.close()
        return found, sent

    with closing(Board()) as board, ThreadPoolExecutor(size) as pool:
        ended = list(pool.map(device, range(size)))
    return [found for found, _ in ended], ended[0][1]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_messages_arrive_whole_whatever_their_sizes_were(size: int) -> None:
    rng = random.Random(size)
    rounds = [
        [[rng.randbytes(rng.choice([0, 1, 70, 5000])) for _ in range(size)] for _ in range(size)]
        for _ in range(8)
    ]
    found, _ = swapped(size, rounds)
    for index in range(size):
        for number, messages in enumerate(rounds):
            assert found[index][number] == [sent[index] for sent in messages]


def test_messages_of_the_same_sizes_go_in_one_exchange() -> None:
    messages = [[b"", b"a" * 1000], [b"b" * 3000, b""]]
    found, sent = swapped(2, [messages, messages])
    assert found[0][1] == [b"", b"b" * 3000]
    assert sent == 16 + 1152  # the head, and room for 9/8 of 1000 in steps of 64


def sparse_of(ids: list[int]) -> dict[str, SparseGradient]:
    number = len(ids)
    return {
        "item": SparseGradient(
            ids=torch.tensor(ids),
            order_key=torch.arange(number),
            grads=torch.arange(4.0 * number).view(number, 4),
            sightings=torch.ones(number, dtype=torch.int64),
        )
    }


def parity(name: str, ids: Tensor) -> Tensor:
    """Device 0 sums even ids, device 1 odd ones."""
    return ids % 2


def test_a_notice_is_read_as_it_was_written() -> None:
    context = packed_context()
    said = Notice(
        flags=1, checksum=-7, losses=(0.5, -0.0), contexts={3: context}, sums=sparse_of([2, 5, 8])
    )
    first, second = written(said, 2, to=frozenset({1}), summer=parity)
    heard = read(second, 0, 4)
    assert (heard.flags, heard.checksum, heard.losses) == (1, -7, (0.5, -0.0))
    assert heard.contexts == {3: context}
    assert heard.sums["item"].ids.tolist() == [5]
    assert read(first, 0, 4).contexts == {}
    assert read(first, 0, 4).sums["item"].ids.tolist() == [2, 8]


def test_a_damaged_notice_names_its_sender() -> None:
    said = Notice(
        flags=0, checksum=0, losses=(1.0,), contexts={0: packed_context()}, sums=sparse_of([2, 4])
    )
    (message,) = written(said, 1, to=frozenset({0}))
    assert read(message, 6, 9).losses == (1.0,)
    for at in range(len(message)):  # wherever it is, in a loss or a rank as in a row
        damaged = bytearray(message)
        damaged[at] ^= 4
        with pytest.raises(GarbageError, match="device 6, step 9") as caught:
            read(bytes(damaged), 6, 9)
        assert caught.value.culprits == (6,)
    with pytest.raises(GarbageError):
        read(message[:30], 6, 9)


def packed_context() -> bytes:
    return Context(rank=3, step=2, place=[1, 2], buffers={"mean": torch.ones(9)}).to_bytes()


def test_who_is_outvoted_is_named() -> None:
    def telling(checksum: int) -> Notice:
        return Notice(flags=0, checksum=checksum, losses=())

    audit([telling(5), telling(5)], 1)
    with pytest.raises(GarbageError) as caught:
        audit([telling(5), telling(6), telling(5)], 1)
    assert caught.value.culprits == (1,)
    with pytest.raises(GarbageError, match="unknown") as caught:
        audit([telling(5), telling(6)], 1)
    assert caught.value.culprits == ()
