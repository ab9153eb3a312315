"""Errors a user can cause. Each says what is wrong, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TandemError(ValueError):
    """Base of all errors a user can cause; ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(TandemError):
    """A command line, configuration or name that cannot be understood (exit code 2)."""

    exit_code = 2


class DataError(TandemError):
    """A file whose content cannot be used.

    Parameters name the place: ``file``, ``row`` (1-based line of the file, header included),
    ``column``, the offending ``value``, and ``expected``: what would be right.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: object = None,
        row: int | None = None,
        column: str | None = None,
        value: object = None,
        expected: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = file
        self.row = row
        self.column = column
        self.value = value
        self.expected = expected
        place = ", ".join(
            part
            for part in (
                None if file is None else str(file),
                None if row is None else f"row {row}",
                None if column is None else f"column {column!r}",
            )
            if part
        )
        super().__init__(sentence(problem, place, value, expected))


def sentence(problem: str, place: str, value: object, expected: str | None) -> str:
    """Say in one line what is wrong, where ("" if nowhere), what was found, what would be right."""
    text = f"{place}: {problem}" if place else problem
    if value is not None:
        if getattr(value, "ndim", None) == 0:  # NumPy writes a number's type with it
            value = getattr(value, "item")()  # noqa: B009
        shown = repr(value)
        text += f" (found {shown if len(shown) <= 80 else shown[:77] + '...'})"
    if expected:
        text += f"; expected {expected}"
    return text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence that lists the nearest known names (all of them if none is near)."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known: " + ", ".join(names)
