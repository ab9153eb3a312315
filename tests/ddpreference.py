"""Stock DistributedDataParallel on the task ``mlp``, one gloo rank a process: what others train.

``python -m tests.ddpreference OUT WORLD:STEPS:HOOK ...`` imports torch once, forks into WORLD ranks
for each run, and leaves digests of all state and contexts by run, rank and step in OUT. HOOK 1 sums
by a communication hook that folds along the tree over ranks; 0 leaves it to gloo.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # DistributedDataParallel and optimizers import it when first used
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from executor.context import captured, enter, first_context
from executor.hashing import context_digests, digests
from executor.tree import Block, Fold
from executor.worker import die_with_parent
from executor.workloads import mlp_task, noisy_loss


def tree_hook(world: int) -> Any:
    """Return a hook that gathers all ranks' buckets, scales each and folds them in the tree."""

    def hook(state: object, bucket: Any) -> Any:
        own = bucket.buffer() * (1.0 / world)
        gathered = [torch.empty_like(own) for _ in range(world)]
        dist.all_gather(gathered, own)
        fold: Fold[torch.Tensor] = Fold(world, torch.add)
        for rank, value in enumerate(gathered):
            fold.push(Block(rank, rank + 1), value)
        future: Any = torch.futures.Future()
        future.set_result(fold.total())
        return future

    # torch looks at the objects, which a module with postponed annotations does not give.
    hook.__annotations__ = {
        "bucket": dist.GradBucket,  # type: ignore[attr-defined]
        "return": torch.futures.Future[torch.Tensor],
    }
    return hook


def train(rank: int, world: int, steps: int, hooked: bool, store: Path) -> list[dict[str, str]]:
    """Train as one rank; return digests after each step. The group stays, to end with the process.

    DistributedDataParallel's reducer is bound without letting go of the interpreter's lock when it
    dies. If it has the last reference to the group, the group's end joins gloo's threads under that
    lock, and one of them may want it, to forget an all-reduce that was started in backward and has
    Python's context with it: a deadlock now and then (pytorch/pytorch issue 56297).
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    task = mlp_task(num_workers=world, seed=3, device=torch.device("cpu"))
    ddp = DistributedDataParallel(task.module, broadcast_buffers=False)
    if hooked:
        ddp.register_comm_hook(None, tree_hook(world))
    context = first_context(
        rank,
        task.seed,
        generators=task.generators,
        buffers=task.buffers(),
        place=task.source.first(rank),
    )
    enter(context, task.buffers(), None)
    found = []
    for step in range(steps):
        batch, place = task.source.fetch(rank, context.place)
        torch.autograd.backward(noisy_loss(ddp, batch))
        for group in task.optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, (step + 1) / 5)
        task.optimizer.step()
        task.optimizer.zero_grad()
        context = captured(context, place, task.buffers(), None)
        found.append(digests(task.state()) | context_digests([context]))
    dist.barrier()
    return found


def run(world: int, steps: int, hooked: bool) -> list[list[dict[str, str]]]:
    """Fork into ranks, and put their digests together."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    die_with_parent()  # a test that gives up on us leaves no rank behind
                    found = train(rank, world, steps, hooked, Path(folder) / "store")
                    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
                    code = 0
                except Exception:  # noqa: BLE001  the parent learns no more than the code
                    traceback.print_exc()
                finally:
                    os._exit(code)
            ranks.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
        if any(codes):
            raise SystemExit(1)
        return [json.loads((Path(folder) / f"{r}.json").read_text()) for r in range(world)]


def main(argv: list[str]) -> int:
    """Do all runs."""
    out, *runs = argv
    found = {}
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    for text in runs:
        world, steps, hooked = map(int, text.split(":"))
        found[text] = run(world, steps, bool(hooked))
    Path(out).write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
