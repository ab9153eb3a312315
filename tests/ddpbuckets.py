"""The buckets that DistributedDataParallel says it has, and ours.

``python -m tests.ddpbuckets OUT`` leaves both in OUT.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from executor.ring import ddp_buckets

WIDTHS = (700, 700, 300, 3000, 40, 2000, 10)  # seven megabytes, in layers of .1 to 3.6


def main() -> None:
    """Train for three steps as one rank, and write down both."""
    pairs = pairwise(WIDTHS)
    network = nn.Sequential(*(nn.Linear(*pair) for pair in pairs))
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        ddp = DistributedDataParallel(network)
        for _ in range(3):
            torch.autograd.backward(ddp(torch.ones(2, WIDTHS[0])).sum())
        told: Any = ddp._get_ddp_logging_data()  # type: ignore[no-untyped-call]
        dist.destroy_process_group()
    parameters = list(network.parameters())
    first, later = ddp_buckets(parameters, range(len(parameters) - 1, -1, -1))
    ours = [[sum(4 * parameters[i].numel() for i in b) for b in group] for group in (first, later)]
    theirs = [
        [int(size) for size in told[name].split(",")]
        for name in ("bucket_sizes", "rebuilt_bucket_sizes")
    ]
    members = [
        [int(i) for i in b.split()] for b in told["rebuilt_per_bucket_param_indices"].split(",")
    ]
    found = {"ours": [ours, later], "theirs": [theirs, members]}
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
