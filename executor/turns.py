"""A device's logical workers in turn: context in, micro-batch, context out, gradient to the sum.

The switch of EasyScale's EST: after a rank's backward, when its activations are gone. With sharded
tables the rows of all local batches are fetched before the first of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from executor import sparse
from executor.context import Context, borrowed_generators, captured, enter
from executor.data import Fetcher
from executor.faults import Probe
from executor.reduce import DenseReducer
from executor.rows import Rows
from executor.task import Task
from models.sparse.gradients import SparseGradient
from models.train.step import Gradients


class Turns:
    """Runs the micro-batches of a device, step by step.

    ``overlap``: sum and exchange during backward. ``slowdown``: every micro-batch is made to last
    this many times as long. ``own_process``: nobody else draws from this process's generators.
    """

    def __init__(
        self, task: Task, *, overlap: bool, fetch_ahead: int, slowdown: float, own_process: bool
    ) -> None:
        self._task = task
        self._overlap = overlap
        self._slowdown = slowdown
        self._own_process = own_process
        self._fetcher = Fetcher(task.source, fetch_ahead)
        self._entered: Context | None = None  # whose states the generators have

    def follow(self, contexts: Mapping[int, Context]) -> None:
        """Begin a generation with these ranks."""
        self._fetcher.follow({rank: context.place for rank, context in contexts.items()})

    def forget(self) -> None:
        """The task's state has been replaced: no context is entered."""
        self._entered = None

    def close(self) -> None:
        """End the threads that fetch data."""
        self._fetcher.close()

    def run(
        self,
        own: range,
        before: Mapping[int, Context],
        after: dict[int, Context],
        reducer: DenseReducer,
        rows: Rows | None,
        probe: Probe,
        now: Callable[[str], None],
    ) -> tuple[list[float], dict[str, SparseGradient]]:
        """Run ranks ``own`` from contexts ``before``; fill ``after``.

        Return the losses, and the partial sums of sparse rows. ``now`` hears what is being done.
        """
        task, step = self._task, self._task.step
        losses: list[Tensor] = []
        parts: list[Mapping[str, SparseGradient]] = []
        batches: dict[int, tuple[Any, Any]] = {}
        if rows is not None:
            now("exchange")
            batches = {rank: self._fetcher.next(rank, before[rank].place) for rank in own}
            rows.fetch([task.ids(batch) for batch, _ in batches.values()])
        now("turn")
        owned = self._own_process
        with borrowed_generators(task.generators, task.device, owned=owned):
            now("compute")
            for rank in own:
                spoil = probe("micro-step", step, range(rank, rank + 1)) == "nan"
                context = before[rank]
                if rank in batches:
                    batch, place = batches.pop(rank)
                else:
                    batch, place = self._fetcher.next(rank, context.place)
                if not owned or self._entered is not context:
                    enter(context, task.buffers(), task.device)
                self._entered = None
                if self._overlap and not spoil:
                    reducer.arm(rank)
                part = self._micro_step(rank, batch)
                after[rank] = self._entered = captured(context, place, task.buffers(), task.device)
                probe("backward", step, range(rank, rank + 1))
                if spoil:
                    part = _spoilt(part)
                reducer.push(rank, part.dense)
                losses.append(part.loss)
                parts.append(part.sparse)
                del part, batch  # not beside the next rank's activations
        if rows is not None:
            rows.forget()
        numbers = torch.stack(losses).tolist()  # on a GPU, now they are waited for, once
        if task.tables is None:
            return numbers, {}
        return numbers, sparse.partial_sums(parts, own, task.num_workers)

    def _micro_step(self, rank: int, batch: Any) -> Gradients:
        began = time.perf_counter()
        part = self._task.micro_step(rank, batch)
        if self._slowdown > 1:
            if self._task.device.type == "cuda":
                torch.cuda.synchronize(self._task.device)
            time.sleep((time.perf_counter() - began) * (self._slowdown - 1))
        return part


def _spoilt(part: Gradients) -> Gradients:
    return replace(part, dense=tuple(torch.full_like(g, float("nan")) for g in part.dense))
