"""How a fractional GPU request becomes a canonical one.

Publishers ask for GPUs per worker and in fractions (PAI percent, spot-GPU decimals). The canonical
table knows whole GPUs, and a share of one GPU. So a job's workers are added up: less than one GPU
in total is a share of one device, more is rounded up to whole devices, and the caller records
which jobs were rounded. Left out: several shares of one job on different devices.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from traces.job import WHOLE_GPU_MILLI

Integers = npt.NDArray[np.int64]


def milli(gpus: npt.NDArray[np.float64]) -> Integers:
    """Turn GPUs into milli-GPUs; anything above zero is at least one thousandth."""
    rounded = np.rint(gpus * WHOLE_GPU_MILLI).astype(np.int64)
    return np.where(gpus > 0, np.maximum(rounded, 1), 0)


def whole_or_share(total_milli: Integers) -> tuple[Integers, Integers, npt.NDArray[np.bool_]]:
    """Split totals (jobs,) in milli-GPUs into ``num_gpus`` and ``gpu_milli``, both (jobs,).

    The third array is true where a fraction above one GPU was rounded up.
    """
    share = (total_milli > 0) & (total_milli < WHOLE_GPU_MILLI)
    num_gpus = np.where(share, 1, -(-total_milli // WHOLE_GPU_MILLI))
    gpu_milli = np.where(share, total_milli, WHOLE_GPU_MILLI)
    rounded = ~share & (total_milli % WHOLE_GPU_MILLI != 0)
    return num_gpus, gpu_milli, rounded
