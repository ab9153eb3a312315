"""Waiting for other GPUs: as NCCL wants it, played by a group that keeps NCCL's rules.

The tensors are on the meta device, which has no numbers: what is held to is who waits for what, who
is told of what, and how long memory is kept. NCCL's rules are those of ``WorkNCCL`` in torch's
source: a wait that is given a time aborts the communicator at its end; an operation that failed is
complete, and says so when it is waited for; and until the group is aborted, operations go on.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor

from executor import exchange as module
from executor.errors import PeerLostError
from executor.exchange import Exchange, Pending

META = torch.device("meta")


class Work:
    """An operation: under way, ``done``, or done and ``broken``. ``orders``: streams that wait."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.done = threading.Event()
        self.broken = False
        self.orders = 0

    def is_completed(self) -> bool:
        return self.done.is_set()

    def wait(self, timeout: timedelta | None = None) -> bool:
        if timeout is not None and not self.done.wait(timeout.total_seconds()):
            self.group.aborted.set()
            raise RuntimeError("Work timed out in blocking wait.")
        assert self.done.is_set(), "the stream is stuck until the others come"
        self.orders += 1
        if self.broken:
            raise RuntimeError("NCCL error: remote process exited\nand a long report")
        return True


class Group:
    def __init__(self) -> None:
        self.works: list[Work] = []
        self.aborted = threading.Event()
        self.may_abort = threading.Event()
        self.may_abort.set()

    def alltoall_base(self, *_: Any) -> Work:
        self.works.append(Work(self))
        return self.works[-1]

    def abort(self) -> None:
        assert self.may_abort.wait(10)
        self.aborted.set()


class NoVisit:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> dict[torch.device, Group]:
    """The groups that are built, by device."""
    built: dict[torch.device, Group] = {}

    def group(*_: Any) -> Group:
        return built.setdefault(_[-1], Group())

    monkeypatch.setattr(module, "_meet", lambda *_: None)
    monkeypatch.setattr(module, "Visit", NoVisit)
    monkeypatch.setattr(module, "PrefixStore", lambda *_: None)
    monkeypatch.setattr(module, "_group", group)
    return built


def started(exchange: Exchange) -> tuple[Pending, weakref.ref[Tensor]]:
    """An exchange whose input nobody but it knows any more."""
    rows = torch.empty(2, 8, device=META)
    pending = exchange.all_to_all(torch.empty_like(rows), rows, [1, 1], [1, 1])
    return pending, weakref.ref(rows)


def with_gpus(**settings: Any) -> Exchange:
    return Exchange("", "", 0, 2, device=META, **settings)


def test_each_kind_of_tensor_has_its_group(groups: dict[torch.device, Group]) -> None:
    with_gpus()
    assert list(groups) == [torch.device("cpu"), META]
    groups.clear()
    Exchange("", "", 0, 2)
    assert list(groups) == [torch.device("cpu")]


def test_to_wait_for_long_is_no_error(groups: dict[torch.device, Group]) -> None:
    """Longer than the time after which a wait on gloo looks whether it is in vain."""
    pending, rows = started(with_gpus(abandoned=lambda: False))
    work = groups[META].works[0]
    threading.Timer(5 * module._SLICE.total_seconds(), work.done.set).start()
    pending.wait()
    assert work.orders == 1  # what is done next on this stream comes after it
    assert not groups[META].aborted.is_set()
    gc.collect()
    assert rows() is None


def test_the_play_keeps_the_rules(groups: dict[torch.device, Group]) -> None:
    """As on gloo, the same wait would have cost the communicator."""
    with_gpus()
    group = groups[META]
    as_on_gloo = Pending(group.alltoall_base(), (), lambda: True)
    with pytest.raises(PeerLostError, match="given up"):
        as_on_gloo.wait()
    assert group.aborted.is_set()


def test_memory_is_kept_until_nobody_writes_there(groups: dict[torch.device, Group]) -> None:
    given_up = threading.Event()
    exchange = with_gpus(abandoned=given_up.is_set)
    pending, rows = started(exchange)
    group = groups[META]
    threading.Timer(0.02, given_up.set).start()
    with pytest.raises(PeerLostError, match="given up"):
        pending.wait()
    assert group.works[0].orders == 0  # or the stream would be stuck
    del pending
    group.may_abort.clear()
    exchange.close()
    gc.collect()
    assert rows() is not None
    group.may_abort.set()
    assert group.aborted.wait(10)
    end = time.monotonic() + 10
    while rows() is not None and time.monotonic() < end:
        time.sleep(0.001)
        gc.collect()
    assert rows() is None


def test_who_is_too_slow_is_lost(groups: dict[torch.device, Group]) -> None:
    pending, _ = started(with_gpus(timeout_s=0.05))
    with pytest.raises(PeerLostError, match="too slow"):
        pending.wait()
    assert groups[META].works[0].orders == 0


def test_an_operation_that_broke_says_so_in_a_line(groups: dict[torch.device, Group]) -> None:
    pending, rows = started(with_gpus())
    work = groups[META].works[0]
    work.broken = True
    work.done.set()
    with pytest.raises(PeerLostError, match="remote process exited") as told:
        pending.wait()
    assert "report" not in str(told.value)
    gc.collect()
    assert rows() is not None
