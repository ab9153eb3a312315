"""Exports that are imported when they are asked for.

``import traces`` must cost nothing: the front door builds every room's sub-commands before it
knows which one is wanted, and pandas alone takes longer than ``tandem --help`` may. So a room's
``__init__`` names its exports and the module each lives in, and this module resolves them on first
use (PEP 562). Type checkers see plain imports under ``TYPE_CHECKING``.

A lazy export must not have the name of a module beside it: importing the module would bind that
name in the package first. ``tests/test_front_door.py`` checks this for every room.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping


def lazy_exports(package: str, exports: Mapping[str, str]) -> Callable[[str], object]:
    """Return the ``__getattr__`` of ``package``; ``exports`` maps a name to its full module name.

    The attribute it returns is then bound in the package, so it is looked up once. Raises
    ``AttributeError`` for names that are not exported, as Python asks of a module.
    """

    def __getattr__(name: str) -> object:  # noqa: N807  (the name PEP 562 gives it)
        module = exports.get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(module), name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__
