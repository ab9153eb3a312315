"""What there is: policies of all three kinds, their parameters, and what each name leaves open.

``tandem policies`` prints it; nothing here decides anything.
"""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from policies.contract import IntraJobPolicy, PlacementPolicy, Policy
from policies.registry import (
    INTRAS,
    PLACEMENTS,
    POLICIES,
    intra_class,
    make_intra,
    make_placement,
    make_policy,
    placement_class,
    policy_class,
)
from traces import UsageError
from traces.errors import did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter: its name, its type as written, and its default as it would be given."""

    name: str
    type: str
    default: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One policy of any kind; ``summary`` is the first line of its class, ``text`` all of it."""

    kind: Literal["policy", "placement", "intra"]
    name: str
    summary: str
    text: str
    parameters: tuple[Parameter, ...]
    says: tuple[str, ...]


def catalog() -> list[Entry]:
    """Return every policy registered here, of all kinds, with its defaults."""
    found = [_entry("policy", name, policy_class(name)()) for name in POLICIES]
    found += [_entry("placement", name, placement_class(name)()) for name in PLACEMENTS]
    return found + [_entry("intra", name, intra_class(name)()) for name in INTRAS]


def entry_of(text: str) -> Entry:
    """Return the entry of ``NAME[:param=value,...]`` or ``FILE.py:Class[:...]``, as set there.

    Raises :class:`UsageError` if it is neither a policy nor a placement.
    """
    name = text.partition(":")[0]
    if name in PLACEMENTS:
        return _entry("placement", name, make_placement(text))
    if name in INTRAS:
        return _entry("intra", name, make_intra(text))
    if name in POLICIES or name.endswith(".py"):
        made = make_policy(text)
        return _entry("policy", name if name in POLICIES else text, made)
    try:
        return _entry("policy", name, make_policy(text))  # a third party's
    except UsageError:
        near = did_you_mean(name, [*POLICIES, *PLACEMENTS, *INTRAS])
        raise UsageError(f"unknown policy or placement {name!r}; {near}") from None


def _entry(kind: Any, name: str, made: Policy | PlacementPolicy | IntraJobPolicy) -> Entry:
    cls = type(made)
    text = inspect.cleandoc(cls.__doc__ or "").replace("``", "")
    parameters = tuple(
        Parameter(name=f.name, type=_written(f.type), default=_given(f.default))
        for f in fields(cls)
        if f.init
    )
    return Entry(
        kind=kind,
        name=name,
        summary=text.split("\n\n")[0].replace("\n", " "),
        text=text,
        parameters=parameters,
        says=made.says(),
    )


def _written(annotation: object) -> str:
    text = annotation if isinstance(annotation, str) else str(annotation)
    if text.startswith("Literal["):
        return " | ".join(part.strip("\"' ") for part in text[8:-1].split(","))
    return {
        "tuple[float, ...]": "numbers joined by ';'",
        "str": "text",
        "bool": "true | false",
    }.get(text, {"float": "number", "int": "whole number"}.get(text, text))


def _given(value: object) -> str:
    """A default as it would be written on the command line."""
    if value is MISSING:
        return "(required)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ";".join(_given(v) for v in value)
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value).lower() if value is None else str(value)
