"""Which jobs can never run on an inventory, and why.

A job is infeasible when it would not fit on the empty cluster: no node of an allowed type, more
GPUs than that type has, too many for one node where it must not span, or more CPU or memory than
its nodes have. The rules are those of :class:`traces.job.Request`: one job runs on one GPU type,
CPU and memory are spread in proportion to the GPUs taken on each node, and a CPU job sits on one
node. Left out: what other jobs hold, racks and links, devices that fail later.

Work is per distinct request and per distinct kind of node, so a million jobs cost what their few
hundred requests cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from traces.errors import did_you_mean

if TYPE_CHECKING:
    from traces.cluster import ClusterSpec
    from traces.job import Request
    from traces.workload import Workload

MisfitCode = Literal["unknown_type", "too_many_gpus", "single_node", "cpu", "memory"]


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a request fits nowhere: a ``code`` for programs, a ``text`` for people."""

    code: MisfitCode
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Infeasible:
    """The verdict over a workload.

    ``mask`` (jobs,) is true where a job can never run, by rank; ``by_request`` holds the reason,
    or None, of each of ``workload.requests``; ``request_of`` (jobs,) leads from one to the other.
    ``elastic``: the verdict on elastic jobs by rank, where they are judged by their least size.
    """

    mask: npt.NDArray[np.bool_]
    by_request: tuple[Misfit | None, ...]
    request_of: npt.NDArray[np.int64]
    elastic: Mapping[int, Misfit | None] = field(default_factory=dict)

    def reason(self, rank: int) -> Misfit | None:
        """Return why the job at ``rank`` can never run; None if it can."""
        if rank in self.elastic:
            return self.elastic[rank]
        return self.by_request[int(self.request_of[rank])]

    def __len__(self) -> int:
        return int(self.mask.sum())


@dataclass(frozen=True, slots=True)
class _Kind:
    """Nodes that are alike, and how many there are. None: not a limit."""

    gpu_type: str
    num_gpus: int
    cpu_milli: int | None
    memory_mib: int | None


def infeasible(workload: Workload, spec: ClusterSpec, *, sizes: bool = False) -> Infeasible:
    """Tell which jobs of ``workload`` would not fit on an empty ``spec``, with reasons.

    With ``sizes`` an elastic job is judged by the fewest GPUs it can run on (of any types, if it
    mixes them), not by its gang.
    """
    kinds = Counter(_Kind(n.gpu_type, n.num_gpus, n.cpu_milli, n.memory_mib) for n in spec.nodes)
    reasons = tuple(_misfit(request, kinds) for request in workload.requests)
    bad = np.array([reason is not None for reason in reasons], dtype=bool)
    request_of = workload.request_of
    mask = bad[request_of] if reasons else np.zeros(len(workload), dtype=bool)
    elastic: dict[int, Misfit | None] = {}
    if sizes and workload.elastic:
        elastic = _smallest(workload, kinds)
        for rank, found in elastic.items():
            mask[rank] = found is not None
    return Infeasible(mask=mask, by_request=reasons, request_of=request_of, elastic=elastic)


def _smallest(workload: Workload, kinds: Mapping[_Kind, int]) -> dict[int, Misfit | None]:
    """The verdict on each elastic job at its least size, by rank."""
    known: dict[Request, Misfit | None] = {}
    verdicts: dict[int, Misfit | None] = {}
    for job in workload.jobs():
        if job.elastic is None:
            continue
        request, least = job.request, job.elastic.least_gpus
        small = replace(
            request,
            num_gpus=least,
            gpu_types=() if job.elastic.mixes_types else request.gpu_types,
            cpu_milli=-(-request.cpu_milli // request.num_gpus) * least,
            memory_mib=-(-request.memory_mib // request.num_gpus) * least,
        )
        if small not in known:
            known[small] = _misfit(small, kinds)
        found = known[small]
        if found is not None and job.elastic.mixes_types and found.code == "too_many_gpus":
            enough = sum(k.num_gpus * n for k, n in kinds.items()) >= least
            found = None if enough else found
        verdicts[job.rank] = found
    return verdicts


def misfit(request: Request, spec: ClusterSpec) -> Misfit | None:
    """Return why ``request`` would not fit on an empty ``spec``; None if it would."""
    return _misfit(
        request,
        Counter(_Kind(n.gpu_type, n.num_gpus, n.cpu_milli, n.memory_mib) for n in spec.nodes),
    )


def _misfit(request: Request, kinds: Mapping[_Kind, int]) -> Misfit | None:
    usable = {k: n for k, n in kinds.items() if k.num_gpus or not request.num_gpus}
    present = sorted({k.gpu_type for k in usable})
    types = [t for t in present if not request.gpu_types or t in request.gpu_types]
    if not types:
        wanted = " or ".join(request.gpu_types) or ("a GPU" if request.num_gpus else "a node")
        near = f" ({did_you_mean(request.gpu_types[0], present)})" if present else ""
        return Misfit("unknown_type", f"needs {wanted}; the inventory has none{near}")
    if not request.num_gpus:
        nodes = [k for k in usable if k.gpu_type in types]
        return _fits_one_node(request, nodes)
    # One type is enough; where none is, the reason given is that of the type that came furthest.
    best: Misfit | None = None
    for gpu_type in types:
        of_type = {k: n for k, n in usable.items() if k.gpu_type == gpu_type}
        found = _misfit_on_type(request, gpu_type, of_type)
        if found is None:
            return None
        if best is None or _STAGE[found.code] > _STAGE[best.code]:
            best = found
    return best


_STAGE: dict[MisfitCode, int] = {
    "unknown_type": 0,
    "too_many_gpus": 1,
    "single_node": 2,
    "cpu": 3,
    "memory": 4,
}


def _misfit_on_type(request: Request, gpu_type: str, kinds: Mapping[_Kind, int]) -> Misfit | None:
    total = sum(k.num_gpus * n for k, n in kinds.items())
    if request.num_gpus > total:
        return Misfit("too_many_gpus", f"needs {request.num_gpus} {gpu_type}; there are {total}")
    if request.single_node or request.num_gpus == 1:
        roomy = [k for k in kinds if k.num_gpus >= request.num_gpus]
        if not roomy:
            largest = max(k.num_gpus for k in kinds)
            return Misfit(
                "single_node",
                f"needs {request.num_gpus} GPUs on one node; the largest {gpu_type} node has"
                f" {largest}",
            )
        return _fits_one_node(request, roomy)
    room = [(k, n, _gpus_by(k.cpu_milli, request.cpu_milli, request)) for k, n in kinds.items()]
    with_cpu = sum(n * min(k.num_gpus, gpus) for k, n, gpus in room)
    if with_cpu < request.num_gpus:
        return Misfit(
            "cpu",
            f"needs {_cpus(request)} beside each of {request.num_gpus} GPUs;"
            f" {gpu_type} nodes have that beside {with_cpu}",
        )
    with_both = sum(
        n * min(k.num_gpus, gpus, _gpus_by(k.memory_mib, request.memory_mib, request))
        for k, n, gpus in room
    )
    if with_both < request.num_gpus:
        return Misfit(
            "memory",
            f"needs {request.memory_mib / request.num_gpus / 1024:.4g} GiB beside each of"
            f" {request.num_gpus} GPUs; {gpu_type} nodes have that beside {with_both}",
        )
    return None


def _fits_one_node(request: Request, kinds: Sequence[_Kind]) -> Misfit | None:
    with_cpu = [k for k in kinds if k.cpu_milli is None or k.cpu_milli >= request.cpu_milli]
    if not with_cpu:
        largest = max(k.cpu_milli or 0 for k in kinds)
        return Misfit(
            "cpu",
            f"needs {request.cpu_milli / 1000:g} CPUs on one node; the largest has"
            f" {largest / 1000:g}",
        )
    if any(k.memory_mib is None or k.memory_mib >= request.memory_mib for k in with_cpu):
        return None
    largest = max(k.memory_mib or 0 for k in with_cpu)
    return Misfit(
        "memory",
        f"needs {request.memory_mib / 1024:.4g} GiB on one node; the largest with its CPUs has"
        f" {largest / 1024:.4g}",
    )


def _gpus_by(capacity: int | None, asked: int, request: Request) -> int:
    """GPUs of this request that a node's CPU or memory can stand beside."""
    if capacity is None or asked == 0:
        return request.num_gpus
    return capacity * request.num_gpus // asked


def _cpus(request: Request) -> str:
    return f"{request.cpu_milli / request.num_gpus / 1000:.4g} CPUs"
