"""Traffic between the devices of one job: a process group of its own for each generation.

A *generation* is the time between two changes of a job's devices. Each has a group built directly
(``ProcessGroupGloo`` on the CPU, ``ProcessGroupNCCL`` on CUDA) with the agent's board as its store,
under a prefix of its own; torch's global default group is never touched, so groups of many jobs and
generations live side by side in one process. Building one takes a few milliseconds. When a peer's
process dies its sockets close and every waiting operation fails at once. A peer that lives and has
left is not noticed by gloo, so waiting can be given up from outside (``abandoned``). A group that
broke is useless and is thrown away.

All operations are started in the same order on every device and counted in bytes sent to others.

NCCL is written from its source and documentation and was not run: there was no second GPU to run it
on. What it does otherwise than gloo:

- A wait with a timeout aborts the communicator when the time is over, so it is looked at instead;
  and the stream is made to wait only for what has come, so that a GPU is never stuck behind a peer
  that is dead, which NCCL between GPUs of one machine need not notice.
- An error ends the process, unless the environment says not to.
- Its kernels write on until the group is aborted, so their memory is kept until then.
- It would connect in the first operation, in the middle of a step; it is told to when it is built.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore

from executor.board import Visit
from executor.errors import PeerLostError

_SLICE = timedelta(milliseconds=20)  # between two looks at whether waiting is in vain
_LOOK_S = 2e-5  # between two looks at whether a GPU has got what it waits for
_NO_ERROR_ENDS_THE_PROCESS = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
}

_HERE = "127.0.0.1"  # where gloo listens

GivenUp = Callable[[], bool] | None
Held = dict[object, tuple[Tensor, ...]]


class Pending:
    """An operation that was started. ``wait`` returns when its output is there."""

    def __init__(self, work: Any, keep: tuple[Tensor, ...] = (), given_up: GivenUp = None) -> None:
        self._work = work
        self._keep = keep  # the group reads its inputs until it is done
        self._given_up = given_up

    def wait(self) -> None:
        """Wait for the output.

        Raises PeerLostError if a device is gone or too slow, or as soon as waiting is given up.
        """
        try:
            while self._work is not None and not self._done():
                pass
        except RuntimeError as error:
            raise PeerLostError("the exchange broke", where=str(error).split("\n")[0]) from None
        finally:
            self._work, self._keep = None, ()

    def _done(self) -> bool:
        """Wait for a moment, if the wait can be given up, else to the end."""
        if self._given_up is None:
            return bool(self._work.wait())
        try:
            return bool(self._work.wait(_SLICE))
        except RuntimeError:
            if self._work.is_completed():  # done, or failed, in this very moment
                return bool(self._work.wait())
            if self._given_up():
                raise PeerLostError("the exchange was given up") from None
            return False


class PendingOnGpu(Pending):
    """An operation between GPUs; its tensors are in ``held`` until it is done.

    ``wait`` raises PeerLostError after ``timeout_s``, too.
    """

    def __init__(
        self,
        work: Any,
        keep: tuple[Tensor, ...],
        given_up: GivenUp,
        held: Held,
        timeout_s: float,
    ) -> None:
        super().__init__(work, (), given_up)
        self._held, self._key = held, object()
        held[self._key] = keep
        self._end = time.monotonic() + timeout_s

    def _done(self) -> bool:
        while not self._work.is_completed():
            if self._given_up is not None and self._given_up():
                raise PeerLostError("the exchange was given up")
            if time.monotonic() > self._end:
                raise PeerLostError("the exchange broke", where="the others are too slow")
            time.sleep(_LOOK_S)
        self._work.wait()  # what this stream does next comes after it; or says what broke
        self._held.pop(self._key, None)
        return True


class Exchange:
    """The devices of one generation: this is ``index`` of ``size``.

    ``address``: of the agent's board; ``prefix`` names job and generation. ``device``
    "cuda" adds a group for tensors on the GPU to that for tensors on the CPU. With one device there
    is no group and nothing is sent. Raises PeerLostError if the others do not come
    within ``timeout_s``, or if ``abandoned`` says that waiting for them is in vain.
    """

    def __init__(
        self,
        address: str,
        prefix: str,
        index: int,
        size: int,
        *,
        timeout_s: float = 60.0,
        device: torch.device | str = "cpu",
        abandoned: GivenUp = None,
    ) -> None:
        self.index = index
        self.size = size
        self.sent_bytes = 0
        self.device = _indexed(torch.device(device))
        self._groups: dict[str, Any] = {}
        self._held: Held = {}  # what a GPU's operations work on
        self._visit: Visit | None = None  # groups use it, and do not keep it
        self._timeout_s = timeout_s
        self._abandoned = abandoned
        devices = {"cpu": torch.device("cpu"), self.device.type: self.device}
        if size > 1:
            try:
                self._visit = Visit(address, prefix, timeout_s=timeout_s)
                _meet(self._visit, index, size, timeout_s, abandoned)
                for kind, own in devices.items():
                    store = PrefixStore(kind, self._visit)
                    make = partial(_group, store, index, size, timeout_s, own)
                    self._groups[kind] = _built(make, abandoned)
            except PeerLostError:
                self.close()
                raise
            except RuntimeError as error:
                self.close()
                text = str(error).split("\n")[0]
                raise PeerLostError("the devices did not meet", where=text) from None

    def all_to_all(
        self, output: Tensor, inputs: Tensor, output_rows: Sequence[int], input_rows: Sequence[int]
    ) -> Pending:
        """Start to send ``input_rows[i]`` rows to device i and receive ``output_rows[i]`` rows."""
        if self.size == 1:
            output.copy_(inputs)
            return Pending(None)
        itemsize = inputs.element_size() * (inputs[0].numel() if inputs.dim() > 1 else 1)
        self.sent_bytes += (sum(input_rows) - input_rows[self.index]) * itemsize
        return self._start("alltoall_base", output, inputs, list(output_rows), list(input_rows))

    def all_gather(self, output: Tensor, own: Tensor) -> Pending:
        """Start to fill ``output`` (size x n,) with ``own`` (n,) of every device."""
        if self.size == 1:
            output.copy_(own)
            return Pending(None)
        if own.device.type != "cpu":
            self.sent_bytes += own.numel() * own.element_size() * (self.size - 1)
            return self._start("_allgather_base", output, own)
        # Gloo's own goes round a ring in size - 1 steps, one after the other.
        rows = [1] * self.size
        return self.all_to_all(output.view(self.size, -1), own.repeat(self.size, 1), rows, rows)

    def send(self, tensor: Tensor, to: int) -> Pending:
        """Start to send a contiguous tensor to a device that receives it."""
        self.sent_bytes += tensor.numel() * tensor.element_size()
        return self._start("send", [tensor], to, 0)

    def receive(self, tensor: Tensor, source: int) -> Pending:
        """Start to fill a contiguous tensor with what a device sends."""
        return self._start("recv", [tensor], source, 0)

    def close(self) -> None:
        """Leave; the group is ended by a thread of its own.

        Ending a group waits for operations that will never be done, until they time out.
        """
        groups, self._groups = self._groups, {}
        held, self._held = self._held, {}
        visit, self._visit = self._visit, None
        if groups:
            # Not a daemon: the interpreter must not end in the middle of it.
            end = partial(_end, groups, held, visit)
            threading.Thread(target=end, name="end of a group").start()
        elif visit is not None:
            visit.close()

    def _start(self, operation: str, *arguments: Any) -> Pending:
        first = arguments[0]
        tensor = first if isinstance(first, Tensor) else first[0]
        group = self._groups.get(tensor.device.type)
        if group is None:
            raise PeerLostError("the exchange is closed")
        keep = tuple(a for a in arguments if isinstance(a, Tensor)) or tuple(first)
        try:
            work = getattr(group, operation)(*arguments)
        except RuntimeError as error:
            raise PeerLostError("the exchange broke", where=str(error).split("\n")[0]) from None
        if tensor.device.type != "cpu":
            return PendingOnGpu(work, keep, self._abandoned, self._held, self._timeout_s)
        # Gloo breaks a pair whose send or receive is waited for in slices.
        whole = operation in {"send", "recv"}
        return Pending(work, keep, None if whole else self._abandoned)


def _end(groups: dict[str, Any], held: Held, visit: Visit | None) -> None:
    while groups:
        _, group = groups.popitem()
        # A group that broke before may say so again.
        with suppress(RuntimeError):
            group.abort()
        del group
    held.clear()
    if visit is not None:  # after the last who may use it
        visit.close()


def _meet(visit: Visit, index: int, size: int, timeout_s: float, abandoned: GivenUp) -> None:
    """Wait until every device is here; a group that is built before would wait for the dead."""
    visit.set(f"here/{index}", b"")
    everybody = [f"here/{i}" for i in range(size)]
    end = time.monotonic() + timeout_s
    while not visit.have_come(everybody, _SLICE.total_seconds()):
        if (abandoned is not None and abandoned()) or time.monotonic() > end:
            raise PeerLostError("the devices did not meet")


def _built(make: Callable[[], Any], abandoned: GivenUp) -> Any:
    """Make a group in a thread: who is here may be gone before the group stands, and gloo waits."""
    outcome: SimpleQueue[Any] = SimpleQueue()

    def attempt() -> None:
        try:
            outcome.put(make())
        except RuntimeError as error:
            outcome.put(error)

    threading.Thread(target=attempt, name="begin of a group").start()
    while True:
        try:
            made = outcome.get(timeout=_SLICE.total_seconds())
        except Empty:
            if abandoned is not None and abandoned():
                raise PeerLostError("the devices did not meet") from None
            continue
        if isinstance(made, RuntimeError):
            raise made
        return made


def _indexed(device: torch.device) -> torch.device:
    """With this thread's GPU, if none is named; groups are built in other threads."""
    if device.type != "cuda":
        return device
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.device(device.type, index)


def _group(store: Any, index: int, size: int, timeout_s: float, device: torch.device) -> Any:
    timeout = timedelta(seconds=timeout_s)
    if device.type == "cuda":
        os.environ |= _NO_ERROR_ENDS_THE_PROCESS
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        group: Any = dist.ProcessGroupNCCL(store, index, size, options)
        group.eager_connect_single_device(device)
        return group
    gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    gloo._timeout = timeout
    gloo._threads = 2
    gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=_HERE)]
    return dist.ProcessGroupGloo(store, index, size, gloo)
