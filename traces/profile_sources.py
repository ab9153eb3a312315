"""Published tables as profiles: EasyScale's fitted times and Gavel's measured throughputs.

:func:`load_profile` tells by its content which of three a JSON file is: a profile of our own
(``profile_file``), the table of times fitted to EasyScale's published curves (keys
``seconds_per_minibatch`` and ``dataset_samples``), or Gavel's ``throughputs.json`` (steps per
second by GPU type, job type and number of GPUs; github.com/stanford-futuredata/gavel, MIT).

Neither says what a reduction, a switch or an update costs. The fitted table has none (EasyScale's
simulator charges no communication); sizes of gradients, and a switch as a share of a micro-batch,
can be added by option. Gavel's rates on one GPU hold the update; those on 2, 4 and 8 GPUs hold the
communication of its testbed and are not used: a rate model that knows the links replaces them.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from traces.errors import DataError
from traces.profile import ModelProfile, Profile
from traces.profile_file import document_of, parse

_FITTED = "seconds_per_minibatch"
_BATCH = re.compile(r"^(?P<model>.*\S) \(batch size (?P<batch>\d{1,9})\)$")
_UNCONSOLIDATED = "_unconsolidated"

PARAMETERS: dict[str, int] = {
    "resnet50": 25_557_032,
    "vgg19": 143_667_240,
    "shufflenetv2": 2_278_604,
    "swintransformer": 28_288_354,
    "yolov3": 61_949_149,
    "bert": 109_482_240,
    "electra": 108_891_648,
    "ncf": 31_832_577,
}
"""Parameters of each application's usual variant, 4 bytes of gradient each: torchvision's
``resnet50``, ``vgg19``, ``shufflenet_v2_x1_0`` and ``swin_t``; YOLOv3 for 80 classes; BERT-base and
ELECTRA-base; MLPerf's NeuMF on MovieLens-20M. EasyScale does not say which variants it trained."""


def load_profile(
    path: Path | str, *, gradients: bool = False, switch_share: float = 0.0
) -> Profile:
    """Read a profile of any of the three kinds.

    ``gradients`` and ``switch_share`` go to :func:`fitted`. Raises :class:`DataError` for a file
    that is none of them, or that has them and is not the fitted table.
    """
    path = Path(path)
    document = document_of(path)
    if _FITTED in document:
        return fitted(document, path, gradients=gradients, switch_share=switch_share)
    if gradients or switch_share:
        raise DataError(
            "only the fitted table leaves gradients and switches open", file=path, expected=_FITTED
        )
    if "format_version" in document:
        return parse(document, path)
    if any(
        isinstance(rows, dict) and any(k.startswith("(") for k in rows)
        for rows in document.values()
    ):
        return gavel(document, path)
    raise DataError(
        "not a profile",
        file=path,
        expected="one of 'tandem profile', EasyScale's fitted table, or Gavel's throughputs.json",
    )


def fitted(
    document: Mapping[str, Any], path: Path, *, gradients: bool = False, switch_share: float = 0.0
) -> Profile:
    """Read the table fitted to EasyScale's published curves.

    ``gradients``: give each model the gradient of its usual variant (:data:`PARAMETERS`), so that
    reductions cost something. ``switch_share``: a switch costs that share of a micro-batch
    (EasyScale, Figure 11: 0.003 on average, at most 0.02).
    """
    if not (isinstance(switch_share, int | float) and 0.0 <= switch_share < math.inf):
        raise DataError("switch_share", value=switch_share, expected="a share, 0 or more")
    models: dict[str, ModelProfile] = {}
    for name, table in _rows(document[_FITTED], _FITTED, path).items():
        times: dict[int, dict[str, float]] = {}
        for batch, row in _rows(table, name, path).items():
            if not batch.isascii() or not batch.isdigit():
                raise DataError(f"{name}: batch size", file=path, value=batch, expected="1 or more")
            times[int(batch)] = dict(_rows(row, f"{name} at batch size {batch}", path))
        types = {
            t: min(r[t] for r in times.values() if t in r) for row in times.values() for t in row
        }
        models[name] = ModelProfile(
            microbatch_s=times,
            switch_s={t: s * switch_share for t, s in types.items()} if switch_share else {},
            gradient_bytes=4.0 * PARAMETERS.get(name, 0) if gradients else 0.0,
        )
    notes = ["times are fitted to published curves, not measured"]
    if gradients:
        notes.append("gradients have the size of each model's usual variant")
    return _named(models, "fitted", path, notes)


def gavel(document: Mapping[str, Any], path: Path) -> Profile:
    """Read Gavel's throughputs: the rate of each job type alone on one GPU of each type.

    Entries of 0 (the model did not fit) and types that end in ``_unconsolidated`` (the same on one
    GPU) are left out; what was left out is noted.
    """
    times: dict[str, dict[int, dict[str, float]]] = {}
    none = 0
    for gpu_type, entries in document.items():
        if gpu_type.endswith(_UNCONSOLIDATED):
            continue
        for key, entry in _rows(entries, gpu_type, path).items():
            job_type, scale = _key(key, gpu_type, path)
            if scale != 1:
                continue
            alone = entry.get("null") if isinstance(entry, dict) else None
            if not isinstance(alone, int | float) or not math.isfinite(alone) or alone < 0.0:
                raise DataError(
                    f"{job_type} on {gpu_type}", file=path, value=alone, expected="steps per second"
                )
            if alone == 0.0:
                none += 1
                continue
            match = _BATCH.match(job_type)
            name, batch = (match["model"], int(match["batch"])) if match else (job_type, 1)
            times.setdefault(name, {}).setdefault(batch, {})[gpu_type] = 1.0 / alone
    models = {name: ModelProfile(microbatch_s=table) for name, table in times.items()}
    notes = ["a micro-batch holds the update: rates are whole steps on one GPU"]
    if none:
        notes.append(f"{none} configurations that did not run (0 steps per second) are left out")
    return _named(models, "published", path, notes)


def _named(models: dict[str, ModelProfile], origin: Any, path: Path, notes: list[str]) -> Profile:
    """A profile whose errors name the file."""
    try:
        return Profile(models=models, origin=origin, source=path.name, notes=tuple(notes))
    except DataError as error:
        raise DataError(
            error.problem, file=path, value=error.value, expected=error.expected
        ) from None


def _key(key: str, gpu_type: str, path: Path) -> tuple[str, int]:
    """Take ``('ResNet-18 (batch size 16)', 1)`` apart."""
    try:
        found = ast.literal_eval(key)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        found = None
    if (
        isinstance(found, tuple)
        and len(found) == 2
        and isinstance(found[0], str)
        and isinstance(found[1], int)
    ):
        return found[0], found[1]
    raise DataError(
        f"an entry of {gpu_type}", file=path, value=key, expected="('JOB TYPE', NUMBER OF GPUS)"
    )


def _rows(value: object, where: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise DataError(where, file=path, value=value, expected="a JSON object that is not empty")
    return value
