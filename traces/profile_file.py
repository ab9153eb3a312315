"""The JSON file of a profile: one document, strictly read, written in one way only.

``format_version`` 1. Numbers that may be infinite (``bytes_per_s``) are null then. Unknown keys are
errors, so that a misspelt cost is not a cost of nothing. ``docs/profiles.md`` describes every key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from traces.errors import DataError, did_you_mean
from traces.formats.raw import read_raw
from traces.profile import ModelProfile, PredictionError, Profile, ReduceCost, Transfer

FORMAT_VERSION = 1
_TOP = (
    "format_version",
    "origin",
    "source",
    "notes",
    "machine",
    "prediction_error",
    "reduce",
    "models",
)
_MODEL = (
    "microbatch_s",
    "interval_s",
    "switch_s",
    "update_s",
    "gradient_bytes",
    "row_bytes",
    "memory_mib",
    "start_s",
    "rescale_s",
    "checkpoint_s",
)
_ERROR = ("cases", "mean_share", "max_share")


def written(profile: Profile) -> str:
    """Return the text of the file; equal profiles give equal text."""
    document = {
        "format_version": FORMAT_VERSION,
        "origin": profile.origin,
        "source": profile.source,
        "notes": list(profile.notes),
        "machine": profile.machine,
        "prediction_error": profile.prediction_error
        and {key: getattr(profile.prediction_error, key) for key in _ERROR},
        "reduce": _reduce_document(profile.reduce),
        "models": {name: _model_document(profile.models[name]) for name in sorted(profile.models)},
    }
    return json.dumps(document, indent=1, sort_keys=False, allow_nan=False) + "\n"


def save(profile: Profile, path: Path | str) -> None:
    """Write a profile."""
    Path(path).write_text(written(profile), encoding="utf-8")


def load(path: Path | str) -> Profile:
    """Read a profile that :func:`save` (or ``tandem profile``) wrote."""
    return parse(document_of(Path(path)), Path(path))


def document_of(path: Path) -> dict[str, Any]:
    """Read a JSON object, bare or compressed; raises :class:`DataError` for anything else."""
    try:
        found: Any = json.loads(read_raw(path).text())
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", file=path, expected="a profile") from error
    if not isinstance(found, dict):
        raise DataError("not a JSON object", file=path, expected="a profile")
    return found


def parse(document: Mapping[str, Any], path: Path) -> Profile:
    """Read the document of a profile file; errors name the file and the key."""
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(
            "format_version",
            file=path,
            value=version,
            expected=f"{FORMAT_VERSION}: a profile written by 'tandem profile' or Profile.save",
        )
    _keys(document, _TOP, ("origin", "models"), "profile", path)
    models = _object(document["models"], "models", path)
    error = document.get("prediction_error")
    notes = document.get("notes", [])
    if not isinstance(notes, list):
        raise DataError("notes", file=path, value=notes, expected="a list of texts")
    machine = document.get("machine")
    try:
        return Profile(
            models={
                name: _model(_object(model, f"model {name}", path), name, path)
                for name, model in models.items()
            },
            origin=document["origin"],
            reduce=_reduce(_object(document.get("reduce", {}), "reduce", path), path),
            machine=None if machine is None else _object(machine, "machine", path),
            prediction_error=None if error is None else _error(error, path),
            source=str(document.get("source", "")),
            notes=tuple(str(note) for note in notes),
        )
    except DataError as error_found:
        if error_found.file is not None:
            raise
        raise DataError(
            error_found.problem,
            file=path,
            value=error_found.value,
            expected=error_found.expected,
        ) from None


def _reduce_document(cost: ReduceCost) -> dict[str, Any]:
    return {
        "latency_s": cost.latency_s,
        "bytes_per_s": _finite(cost.bytes_per_s),
        "by_devices": {
            str(devices): {
                "latency_s": cost.by_devices[devices].latency_s,
                "bytes_per_s": _finite(cost.by_devices[devices].bytes_per_s),
            }
            for devices in sorted(cost.by_devices)
        },
    }


def _model_document(model: ModelProfile) -> dict[str, Any]:
    def rows(table: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        return {str(batch): dict(sorted(table[batch].items())) for batch in sorted(table)}

    document: dict[str, Any] = {"microbatch_s": rows(model.microbatch_s)}
    if model.interval_s:
        document["interval_s"] = {
            batch: {t: list(pair) for t, pair in row.items()}
            for batch, row in rows(model.interval_s).items()
        }
    document["switch_s"] = dict(sorted(model.switch_s.items()))
    document["update_s"] = dict(sorted(model.update_s.items()))
    document["gradient_bytes"] = model.gradient_bytes
    if model.row_bytes:
        document["row_bytes"] = model.row_bytes
    document["memory_mib"] = rows(model.memory_mib)
    for key in ("start_s", "rescale_s", "checkpoint_s"):
        document[key] = getattr(model, key)
    return document


def _model(document: Mapping[str, Any], name: str, path: Path) -> ModelProfile:
    where = f"model {name}"
    _keys(document, _MODEL, ("microbatch_s",), where, path)
    intervals = _rows(document.get("interval_s", {}), f"{where}: interval_s", path)
    for row in intervals.values():
        for gpu_type, pair in row.items():
            if not (isinstance(pair, list) and len(pair) == 2 and pair[0] <= pair[1]):
                raise DataError(
                    f"{where}: interval_s on {gpu_type}",
                    file=path,
                    value=pair,
                    expected="[low, high]",
                )
    return ModelProfile(
        microbatch_s=_rows(document["microbatch_s"], f"{where}: microbatch_s", path),
        switch_s=_object(document.get("switch_s", {}), f"{where}: switch_s", path),
        update_s=_object(document.get("update_s", {}), f"{where}: update_s", path),
        gradient_bytes=document.get("gradient_bytes", 0.0),
        row_bytes=document.get("row_bytes", 0.0),
        memory_mib=_rows(document.get("memory_mib", {}), f"{where}: memory_mib", path),
        start_s=document.get("start_s"),
        rescale_s=document.get("rescale_s"),
        checkpoint_s=document.get("checkpoint_s"),
        interval_s={
            batch: {t: (float(pair[0]), float(pair[1])) for t, pair in row.items()}
            for batch, row in intervals.items()
        },
    )


def _rows(table: object, where: str, path: Path) -> dict[int, dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for batch, row in _object(table, where, path).items():
        if not batch.isascii() or not batch.isdigit() or int(batch) < 1:
            raise DataError(where, file=path, value=batch, expected="a batch size, 1 or more")
        rows[int(batch)] = _object(row, f"{where} at batch size {batch}", path)
    return rows


def _reduce(document: Mapping[str, Any], path: Path) -> ReduceCost:
    _keys(document, ("latency_s", "bytes_per_s", "by_devices"), (), "reduce", path)
    measured: dict[int, Transfer] = {}
    for devices, row in _rows(document.get("by_devices", {}), "reduce: by_devices", path).items():
        _keys(row, Transfer._fields, Transfer._fields, f"reduce over {devices} devices", path)
        measured[devices] = Transfer(row["latency_s"], _infinite(row["bytes_per_s"]))
    return ReduceCost(
        latency_s=document.get("latency_s", 0.0),
        bytes_per_s=_infinite(document.get("bytes_per_s")),
        by_devices=measured,
    )


def _error(document: object, path: Path) -> PredictionError:
    row = _object(document, "prediction_error", path)
    _keys(row, _ERROR, _ERROR, "prediction_error", path)
    return PredictionError(**row)


def _object(value: object, where: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(where, file=path, value=value, expected="a JSON object")
    return value


def _keys(
    found: Mapping[str, Any],
    known: tuple[str, ...],
    needed: tuple[str, ...],
    where: str,
    path: Path,
) -> None:
    for key in found:
        if key not in known:
            raise DataError(
                f"{where}: unknown key {key!r}", file=path, expected=did_you_mean(key, known)
            )
    for key in needed:
        if key not in found:
            raise DataError(f"{where}: no {key!r}", file=path, expected=", ".join(needed))


def _finite(value: float) -> float | None:
    return value if value < math.inf else None


def _infinite(value: Any) -> Any:
    return math.inf if value is None else value
