"""Options of a format: declared by name, so that a misspelt one is an error and not a silence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from traces.errors import UsageError, did_you_mean


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a format: its name, its default as text ('' is: not set), its meaning."""

    name: str
    default: str
    meaning: str


def resolve(
    declared: Sequence[Option], given: Mapping[str, str], format_name: str
) -> dict[str, str]:
    """Fill in defaults; raises :class:`UsageError` for an option the format does not have."""
    known = {option.name: option.default for option in declared}
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) if known else "it has no options"
            raise UsageError(f"format {format_name}: no option {name!r}; {hint}")
    return {**known, **{name: str(value) for name, value in given.items()}}


def number(options: Mapping[str, str], name: str) -> float | None:
    """Return a numeric option, None if not set; raises :class:`UsageError` if not a number."""
    text = options[name].strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise UsageError(f"option {name}={text}: not a number") from error
    if not math.isfinite(value):
        raise UsageError(f"option {name}={text}: not a finite number")
    return value


def choice(options: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """Return an option with a fixed set of values; raises :class:`UsageError` otherwise."""
    value = options[name].strip()
    if value not in choices:
        raise UsageError(f"option {name}={value}: {did_you_mean(value, choices)}")
    return value
