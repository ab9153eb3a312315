"""What a run of training says about itself, for those who read its tables: ``training.json``.

It holds what the checkpoint holds of the run's identity, the versions and the device, and, where
the data knows it, the best AUC that anyone can reach at each stage of the curriculum. Nothing reads
it back into a run: a run resumes from its checkpoint.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models.sparse.arrayfile import replacing
from models.train.curriculum import Curriculum

FORMAT = 1
_EXACT = 1024  # exact sums over a whole history grow with it; the normal law holds for long ones


def write_record(
    path: Path,
    identity: Mapping[str, Any],
    *,
    data: object,
    curriculum: Curriculum,
    device: torch.device,
    peak_flops_per_s: float | None,
) -> None:
    """Write the record of a run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    record = {
        "format": FORMAT,
        **identity,
        "device": name,
        "peak_flops_per_s": peak_flops_per_s,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "best_auc": best_auc(data, curriculum),
    }
    with replacing(path) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())


def best_auc(data: object, curriculum: Curriculum) -> dict[str, float]:
    """Return the best AUC by events seen (``all``: everything), where the data knows it."""
    known = getattr(data, "bayes_auc", None)
    length = getattr(getattr(data, "config", None), "length", None)
    if known is None or not isinstance(length, int):
        return {}
    found = {}
    for _, seen in curriculum.stages:
        visible = length if seen is None else min(seen, length)
        auc = float(known(visible, exact=length <= _EXACT))
        if math.isfinite(auc):
            found["all" if seen is None else str(seen)] = auc
    return found
