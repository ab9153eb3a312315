"""Names to policies: one dictionary per kind, imported when asked for.

``make_policy("tiresias:thresholds=3250;7200,knob=2")`` builds the class with its parameters.
Third parties register under the entry-point group ``tandem.policies`` (or ``tandem.placements``,
``tandem.intras``);
a class in a file is ``path/to/file.py:Class``, parameters after a second colon.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import types
import typing
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from policies.contract import IntraJobPolicy, PlacementPolicy, Policy
from traces import UsageError
from traces.errors import did_you_mean

POLICIES: dict[str, str] = {
    "fifo": "policies.inter.fifo:Fifo",
    "best-effort": "policies.inter.fifo:BestEffort",
    "easy": "policies.inter.backfill:Easy",
    "conservative": "policies.inter.conservative:Conservative",
    "sjf": "policies.inter.shortest:Sjf",
    "srtf": "policies.inter.shortest:Srtf",
    "srsf": "policies.inter.shortest:Srsf",
    "las": "policies.inter.las:Las",
    "tiresias": "policies.inter.las:Tiresias",
    "gittins": "policies.inter.gittins:Gittins",
    "quota": "policies.inter.quota:Quota",
    "yarn-cs": "policies.inter.yarncs:YarnCs",
    "easyscale": "policies.inter.easyscale:EasyScale",
    "afs": "policies.inter.afs:Afs",
    "optimus": "policies.inter.optimus:Optimus",
    "static-share": "policies.inter.staticshare:StaticShare",
}
PLACEMENTS: dict[str, str] = {
    "count": "policies.placement.count:Count",
    "consolidated": "policies.placement.consolidated:Consolidated",
    "spread": "policies.placement.spread:Spread",
    "best-fit": "policies.placement.bestfit:BestFit",
    "topology": "policies.placement.topology:Topology",
    "fgd": "policies.placement.fgd:Fgd",
}
INTRAS: dict[str, str] = {
    "companion": "policies.intra.companion:Companion",
    "even": "policies.intra.even:Even",
}


def make_policy(text: str) -> Policy:
    """Build an inter-job policy from ``NAME[:param=value,...]`` or ``FILE.py:Class[:...]``.

    Raises :class:`UsageError` for unknown names and parameters, with the nearest ones.
    """
    made = _make(text, "policy", POLICIES, Policy)
    assert isinstance(made, Policy)
    return made


def make_placement(text: str) -> PlacementPolicy:
    """Build a placement policy; see :func:`make_policy`."""
    made = _make(text, "placement", PLACEMENTS, PlacementPolicy)
    assert isinstance(made, PlacementPolicy)
    return made


def make_intra(text: str) -> IntraJobPolicy:
    """Build an intra-job policy; see :func:`make_policy`."""
    made = _make(text, "intra", INTRAS, IntraJobPolicy)
    assert isinstance(made, IntraJobPolicy)
    return made


def policy_class(name: str) -> type[Policy]:
    """Return the class registered under a name."""
    found = _find(name, "policy", POLICIES)
    assert issubclass(found, Policy)
    return found


def placement_class(name: str) -> type[PlacementPolicy]:
    """Return the placement class registered under a name."""
    found = _find(name, "placement", PLACEMENTS)
    assert issubclass(found, PlacementPolicy)
    return found


def intra_class(name: str) -> type[IntraJobPolicy]:
    """Return the intra-job policy class registered under a name."""
    found = _find(name, "intra", INTRAS)
    assert issubclass(found, IntraJobPolicy)
    return found


def _make(text: str, kind: str, known: dict[str, str], base: type) -> object:
    head, colon, rest = text.partition(":")
    if head.endswith(".py"):
        if not colon:
            raise UsageError(f"{kind} {text!r}: expected FILE.py:Class")
        name, _, rest = rest.partition(":")
        found = _from_file(Path(head), name, base, kind)
        return _construct(found, parse_params(found, rest, f"{kind} {head!r}"), f"{kind} {text!r}")
    found = _find(head, kind, known)
    return found(**parse_params(found, rest, f"{kind} {head!r}"))


def _construct(cls: type, params: dict[str, Any], where: str) -> object:
    """Make an object of a class that somebody wrote, and ask it what a run's record asks."""
    try:
        made = cls(**params)
        _ = made.params(), list(made.says())
    except UsageError:
        raise
    except Exception as error:  # the user's own code may raise anything; say where it came from
        raise UsageError(f"{where}: cannot be made: {type(error).__name__}: {error}") from error
    return made


def _find(name: str, kind: str, known: dict[str, str]) -> type:
    target = known.get(name)
    if target is not None:
        module, _, attribute = target.partition(":")
        found: type = getattr(importlib.import_module(module), attribute)
        return found
    group = f"tandem.{'policies' if kind == 'policy' else kind + 's'}"
    others = {e.name: e for e in entry_points(group=group)}
    if name in others:
        loaded: type = others[name].load()
        return loaded
    raise UsageError(f"unknown {kind} {name!r}; {did_you_mean(name, [*known, *others])}")


def _from_file(path: Path, name: str, base: type, kind: str) -> type:
    if not path.is_file():
        raise UsageError(f"{kind} file {path}: no such file")
    # Dataclasses and type hints look their module up by name, so it must be there under one of its
    # own: two files of the same name in different folders are two modules.
    own = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"tandem_plugin_{path.stem}_{own}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's own code may raise anything; say where
        del sys.modules[spec.name]
        raise UsageError(f"{kind} file {path}: {type(error).__name__}: {error}") from error
    classes = [
        k
        for k, v in vars(module).items()
        if isinstance(v, type) and issubclass(v, base) and v.__module__ == module.__name__
    ]
    if name not in classes:
        near = did_you_mean(name, classes) if classes else f"it has no {base.__name__}"
        raise UsageError(f"{kind} file {path}: no {base.__name__} named {name!r}; {near}")
    found: type = getattr(module, name)
    return found


def parse_params(cls: type, text: str, where: str) -> dict[str, Any]:
    """Parse ``a=1,b=2;3`` into constructor arguments by the types of the class's fields.

    ``inner=srtf,inner.by=gpu-time`` gives the policy that ``inner`` names its own parameters.

    Raises :class:`UsageError` for unknown names and for values of another type.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: hints[f.name] for f in fields(cls)}
    values: dict[str, Any] = {}
    nested: dict[str, list[str]] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals:
            raise UsageError(f"{where}: parameter {item!r} is not of the form name=value")
        outer, dot, parameter = key.partition(".")
        if dot and known.get(outer) is str:
            nested.setdefault(outer, []).append(f"{parameter}={value.strip()}")
            continue
        if key not in known:
            near = did_you_mean(key, known) if known else "it has none"
            raise UsageError(f"{where} has no parameter {key!r}; {near}")
        values[key] = _convert(known[key], value.strip(), f"{where}: parameter {key}")
    for outer, parameters in nested.items():
        default = next(f.default for f in fields(cls) if f.name == outer)
        values[outer] = f"{values.get(outer, default)}:{','.join(parameters)}"
    return values


def _convert(hint: Any, text: str, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in {types.UnionType, typing.Union}:
        if text.lower() == "none":
            return None
        (hint,) = (h for h in typing.get_args(hint) if h is not type(None))
        origin = typing.get_origin(hint)
    if origin is tuple:
        element = typing.get_args(hint)[0]
        return tuple(_convert(element, part, where) for part in text.split(";") if part)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if text not in choices:
            raise UsageError(f"{where} is {text!r}; expected one of {', '.join(map(str, choices))}")
        return text
    if hint is bool:
        if text.lower() not in {"true", "false"}:
            raise UsageError(f"{where} is {text!r}; expected true or false")
        return text.lower() == "true"
    if hint in {int, float}:
        try:
            return hint(text)
        except ValueError:
            raise UsageError(
                f"{where} is {text!r}; expected {'a whole number' if hint is int else 'a number'}"
            ) from None
    return text
