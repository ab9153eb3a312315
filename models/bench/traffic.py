"""How many bytes the operators of a call read and write, counted one operator at a time.

Each operator that torch dispatches counts its tensor inputs and outputs once; views cost nothing,
and gathers and scatters by index count the rows they touch, not the table. This is the traffic of
unfused kernels with no cache between them: what a memory-bound step is about, an upper bound where
a cache helps, and a lower bound where a kernel reads its input twice. Divided by the step's time
it is the *achieved bandwidth* reported here; beside the device's own it says how near to
memory-bound the step is.

Leaves out: what an operator allocates inside itself, and operators off the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_BY_INDEX = frozenset({"index_select", "embedding", "index", "gather"})
_INTO_INDEX = frozenset(
    {"index_copy", "index_copy_", "index_put", "index_put_", "_index_put_impl_"}
)


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is entered; ``bytes_by_operator`` by name."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.bytes_by_operator: dict[str, int] = {}

    @property
    def bytes(self) -> int:
        """All that was read or written."""
        return sum(self.bytes_by_operator.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count one operator, and let it run."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        moved = self._moved(func, name, tree_leaves((args, kwargs)), tree_leaves(out))
        if moved:
            self.bytes_by_operator[name] = self.bytes_by_operator.get(name, 0) + moved
        return out

    def _moved(self, func: Any, name: str, inputs: list[Any], outputs: list[Any]) -> int:
        if func.is_view or name in {"empty", "empty_like", "new_empty", "empty_strided"}:
            return 0
        read, written = list(self._here(inputs)), list(self._here(outputs))
        if name in _BY_INDEX:
            return 2 * _size(written) + _size(read[1:])
        if name in _INTO_INDEX:
            # The whole is copied first unless it is done in place.
            copied = 0 if name.endswith("_") else 2 * _size(written)
            return copied + _size(read[1:]) + _size(read[-1:])
        return _size(read) + _size(written)

    def _here(self, values: Iterable[Any]) -> Iterator[Tensor]:
        for value in values:
            if isinstance(value, Tensor) and value.device.type == self.device.type:
                yield value


def traffic_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Return the bytes that ``call`` moves on ``device``."""
    counted = Traffic(device)
    with counted:
        call()
    return counted.bytes


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
