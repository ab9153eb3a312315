"""What makes an allocation impossible: the checks a plan passes before it touches the world.

The common case (whole GPUs of one type, free, as many as were asked for) passes quickly; everything
else, and everything that this refuses, is judged in full. A policy is somebody else's code, so
nothing about its answer is taken for granted, not even that it is made of integers.
"""

from __future__ import annotations

from itertools import pairwise

from policies.elastic import fault_of_size, sized
from policies.free import FreeGpus
from policies.state import JobState
from traces import Allocation


def plainly_right(job: JobState, allocation: Allocation, free: FreeGpus) -> bool:
    """Whether an allocation is right at a glance; False says nothing."""
    request = job.request
    try:
        shares, milli = allocation
        if milli != 1000 or request.gpu_milli != 1000 or free.limited:
            return False
        left, last, masks, pool_of = request.num_gpus, -1, free.mask, free.pool_of
        pool = pool_of[shares[0][0]]
        for node, mask in shares:  # nodes ascend; none of them is empty
            if (
                type(node) is type(mask) is int
                and last < node < len(pool_of)
                and pool_of[node] == pool
                and 0 < mask == mask & masks[node]
            ):
                last, left = node, left - mask.bit_count()
            else:
                return False
        return (
            left == 0
            and pool in job.shape.pools
            and type(allocation) is Allocation
            and type(shares) is tuple
            and (len(shares) == 1 or not request.single_node)
        )
    except (TypeError, ValueError, AttributeError, IndexError):
        return False  # not even made of numbers


def fault_of(job: JobState, allocation: object, free: FreeGpus) -> str | None:
    """Say why ``job`` cannot be given ``allocation`` now, or return None if it can."""
    fault = fault_of_shape(job, allocation, free)
    if fault is None:
        assert isinstance(allocation, Allocation)
        request = job.request
        if job.elastic is not None:
            request = sized(request, allocation.num_gpus)
        fault = free.missing(allocation, request)
    return fault


def fault_of_shape(job: JobState, allocation: object, free: FreeGpus) -> str | None:
    """As :func:`fault_of`, whether or not the devices are free."""
    if not _well_formed(allocation):
        return f"is given {allocation!r}, not an Allocation of (node, GPU mask) shares"
    assert isinstance(allocation, Allocation)
    return _not_in_inventory(allocation, free) or _mismatch(job, allocation, free)


def _well_formed(allocation: object) -> bool:
    if type(allocation) is not Allocation or type(allocation.gpu_milli) is not int:
        return False
    shares = allocation.shares
    return isinstance(shares, tuple) and all(
        isinstance(share, tuple)
        and len(share) == 2
        and all(type(number) is int for number in share)
        and share[1] >= 0
        for share in shares
    )


def _not_in_inventory(allocation: Allocation, free: FreeGpus) -> str | None:
    nodes = free.spec.nodes
    for node, mask in allocation.shares:
        if not 0 <= node < len(nodes):
            return f"there is no node with index {node}"
        machine = nodes[node]
        if mask >> machine.num_gpus:
            return (
                f"there is no GPU {mask.bit_length() - 1} on node {machine.name},"
                f" which has {machine.num_gpus}"
            )
    return None


def _mismatch(job: JobState, allocation: Allocation, free: FreeGpus) -> str | None:
    """Say how an allocation differs from what the job asked for."""
    request, shares = job.request, allocation.shares
    fault = None
    if job.elastic is not None:
        fault = fault_of_size(job.elastic, allocation.num_gpus)
    elif allocation.num_gpus != request.num_gpus:
        fault = f"is given {allocation.num_gpus} GPUs; its gang is {request.num_gpus}"
    if fault is not None:
        return fault
    if allocation.gpu_milli != request.gpu_milli:
        fault = f"is given {allocation.gpu_milli}/1000 of a GPU, not {request.gpu_milli}"
    elif not shares:
        fault = "is given no node"
    elif len(shares) > 1 and (request.single_node or not request.num_gpus):
        fault = f"is spread over {len(shares)} nodes; it must stay on one"
    elif len(shares) > 1 and any(a >= b for (a, _), (b, _) in pairwise(shares)):
        fault = "its nodes are named out of order or twice"
    elif request.num_gpus and not all(mask for _, mask in shares):
        fault = "is given a node without any GPU of it"
    elif job.elastic is not None and job.elastic.mixes_types:
        pass  # any types, if the model knows them
    elif len({free.pool_of[node] for node, _ in shares}) > 1:
        fault = "GPU types are mixed; it runs on one type"
    elif request.num_gpus and free.pool_of[shares[0][0]] not in job.shape.pools:
        gpu_type = free.spec.nodes[shares[0][0]].gpu_type
        fault = f"is put on {gpu_type}; it may use {'/'.join(request.gpu_types)}"
    return fault
