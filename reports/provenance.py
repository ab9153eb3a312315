"""What was run, in words: the record of a run (``run.json``) as names and values for people.

Everything in the record is shown, known field or not; a field that is missing is left out, because
a log of an older or newer version, or of the executor, may record more or less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from traces.runlog import RunLog

Facts = tuple[tuple[str, tuple[str, ...]], ...]

_ALONE = ("seed", "revision", "created")
_TOLD = {
    "format_version", "kind", "status", "name", "policy", "placement", "cluster", "workload",
    "costs", "failures", "span", "counts", "versions", "wall_s", *_ALONE,
}  # fmt: skip


def facts(run: RunLog) -> Facts:
    """Return what was run as ``(name, values)`` pairs, in reading order."""
    record = run.record
    found: list[tuple[str, tuple[str, ...]]] = [
        ("name", (str(record["name"]),) if record.get("name") else ()),
        ("run directory", (run.path.name or str(run.path),)),
        ("kind", (f"{record.get('kind', 'unknown')}, {record.get('status', 'unknown')}",)),
    ]
    found += [(name, _chosen(record[name])) for name in ("policy", "placement") if record.get(name)]
    found.append(("cluster", _cluster(run)))
    if isinstance(record.get("workload"), Mapping):
        found += _workload(record["workload"])
    for name in ("costs", "failures"):
        if record.get(name):
            found.append((name, _plain(record[name])))
        elif name in record:
            found.append((name, ("none",)))
    for name in _ALONE:
        if record.get(name) is not None:
            found.append((name, (str(record[name]),)))
    for name in ("span", "counts", "versions"):
        if record.get(name):
            found.append((name, (", ".join(_plain(record[name])),)))
    if record.get("wall_s") is not None:
        found.append(("took", (f"{float(record['wall_s']):.1f} s of wall time",)))
    rest = sorted(set(record) - _TOLD)
    found += [(name, _plain(_without_tables(record[name]))) for name in rest]
    return tuple((name, values) for name, values in found if values)


def _without_tables(value: Any) -> Any:
    """A model with its profile named instead of shown: its tables are in the record."""
    profile = value.get("profile") if isinstance(value, Mapping) else None
    if not isinstance(profile, Mapping):
        return value
    models = ", ".join(sorted(profile.get("models") or {}))
    told = f"{profile.get('origin', 'unknown')}, from {profile.get('source') or 'unknown'}"
    return {**value, "profile": f"{told}; models: {models}"}


def _chosen(choice: Any) -> tuple[str, ...]:
    """A policy or placement: name, parameters, and what its name leaves open."""
    if not isinstance(choice, Mapping):
        return (str(choice),)
    params = choice.get("params") or {}
    given = ", ".join(f"{k} = {_short(v)}" for k, v in sorted(params.items()))
    says = choice.get("says") or ()
    return (f"{choice.get('name', '?')}" + (f" ({given})" if given else ""), *map(str, says))


def _cluster(run: RunLog) -> tuple[str, ...]:
    cluster = run.record.get("cluster") or {}
    text = str(cluster.get("text") or "")
    links = cluster.get("links") or {}
    return (
        f"{text}: {run.spec.describe()}" if text else run.spec.describe(),
        *([f"links: {', '.join(_plain(links))}"] if links else []),
    )


def _workload(workload: Mapping[str, Any]) -> Facts:
    names = {"path": "trace", "digest": "hash of its content (SHA-256)", "zone": "time zone"}
    found: list[tuple[str, tuple[str, ...]]] = []
    for key in ("path", "format", "digest", "jobs", "origin", "zone"):
        value = workload.get(key)
        if value not in (None, ""):
            text = f"{value:,}" if isinstance(value, int) else str(value)
            found.append((names.get(key, key), (text,)))
    repairs = workload.get("repairs") or ()
    found.append(("repairs", tuple(_repair(r) for r in repairs) or ("none",)))
    if workload.get("notes"):
        found.append(("notes", tuple(map(str, workload["notes"]))))
    told = {"path", "format", "digest", "jobs", "origin", "zone", "repairs", "notes"}
    found += [
        (f"trace: {key}", _plain(workload[key]))
        for key in sorted(set(workload) - told)
        if workload[key] not in (None, "", {}, [])
    ]
    return tuple(found)


def _repair(repair: Any) -> str:
    if not isinstance(repair, Mapping):
        return str(repair)
    example = f", for example {repair['example']}" if repair.get("example") else ""
    return f"{repair.get('rule', '?')}: {repair.get('rows', '?')} rows{example}"


def _plain(value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping):
        known = ((k, v) for k, v in sorted(value.items()) if v not in (None, "", {}, []))
        return tuple(f"{k}: {_short(v)}" for k, v in known)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_short(v) for v in value)
    return () if value is None else (_short(value),)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.1f}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(_plain(value)) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_short(v) for v in value) or "none"
    return str(value)
