"""Names to baselines; a class is imported when it is asked for, and torch with it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING

from models.errors import ModelError

if TYPE_CHECKING:
    from models.baselines.contract import Baseline


class _Baselines(Mapping[str, "type[Baseline]"]):
    """A read-only mapping whose values are imported on first use."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> type[Baseline]:
        module, _, attribute = self._places[name].partition(":")
        found: type[Baseline] = getattr(importlib.import_module(module), attribute)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


BASELINES: Mapping[str, type[Baseline]] = _Baselines(
    {
        "sum-pooling": "models.baselines.pooled:SumPooling",
        "din": "models.baselines.din:Din",
        "twin": "models.baselines.twin:Twin",
        "hstu": "models.baselines.hstu:Hstu",
        "transformer": "models.baselines.transformer:Transformer",
    }
)


def find_baseline(name: str) -> type[Baseline]:
    """Return ``BASELINES[name]``. Raises ModelError for an unknown name, with the nearest one."""
    if name in BASELINES:
        return BASELINES[name]
    near = get_close_matches(name, list(BASELINES), n=1)
    raise ModelError(
        "no such baseline",
        where="baseline",
        value=name,
        expected=near[0] + "?" if near else "one of " + ", ".join(BASELINES),
    )
