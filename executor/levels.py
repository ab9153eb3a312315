"""Determinism levels: what a job is promised about its bits, and what keeps the promise.

EasyScale (SC'23), section on determinism, names three; DESIGN says how they are met here:

- **D0**: the same devices give the same bits. Deterministic algorithms, strictly; no tuning that
  times kernels; no reduced-precision products; every random number drawn from (seed, step, rank).
- **D1**: and any number of devices *of one type*, through any rescales. The engine's reduction over
  virtual ranks does that; the level refuses lanes of a second type.
- **D2**: and any mix of types. On CPUs one common capability for all lanes of the job, the lowest
  that any lane has, in torch, oneDNN and MKL alike, and one number of threads. On GPUs the kernels
  of ``executor.kernels``, with a fixed order. A CPU and a GPU are not mixed: nothing here makes
  them agree.

Which kernels a CPU runs is settled when torch is loaded, so a level has two halves: the environment
of a worker process (:meth:`Agreement.environ`) and what the process sets then (:func:`configure`).
What is common is agreed once, when a job starts, for all lanes it may ever get, and is kept in its
checkpoints: agreed anew after a rescale it might be another capability, and other bits.

Leaves out: the order of reductions (``executor.tree``), and seeds (``models.train.step``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from executor.devices import (
    CAPABILITIES,
    DeviceLane,
    capability_environ,
    lowest_capability,
)
from traces.errors import DataError, UsageError, did_you_mean

CUBLAS_WORKSPACE = ":4096:8"
"""Fixes cuBLAS's workspaces; NVIDIA cuBLAS documentation, "Results Reproducibility"."""


class Level(StrEnum):
    """What stays the same: see the module."""

    D0 = "D0"
    D1 = "D1"
    D2 = "D2"

    @classmethod
    def parse(cls, text: str) -> Level:
        """Return the level of that name, in any case; raises :class:`UsageError`."""
        try:
            return cls(text.upper())
        except ValueError:
            known = did_you_mean(text.upper(), [level.value for level in cls])
            raise UsageError(f"unknown determinism level {text!r}; {known}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What the lanes of one job have in common, settled when it starts.

    ``kernels``: under D1 the one type, as :attr:`DeviceLane.kernels` says it. ``capability`` and
    ``threads``: under D2 those of every CPU lane; on GPUs ``capability`` is None. ``on_gpu``: does
    the job run on GPUs? Under D0 only ``on_gpu`` is looked at.
    """

    level: Level
    on_gpu: bool = False
    kernels: str | None = None
    capability: str | None = None
    threads: int | None = None

    def admit(self, lane: DeviceLane) -> None:
        """Raise :class:`DataError`, saying why, if the job would get other bits on this lane."""
        where = f"lane {lane.name}"
        on_gpu = lane.cuda_index is not None
        if self.level is Level.D1 and lane.kernels != self.kernels:
            raise DataError(
                f"{where}: the job runs at D1 on {self.kernels}; {lane.kernels} gives other bits",
                expected=f"a lane of {self.kernels}, or a job at D2",
            )
        if self.level is Level.D2 and on_gpu != self.on_gpu:
            raise DataError(
                f"{where}: no kernels give a CPU and a GPU the same bits",
                expected="GPUs only" if self.on_gpu else "CPU lanes only",
            )
        if self.capability is None or on_gpu:
            return
        most = lane.capability
        if most is None or CAPABILITIES.index(most) < CAPABILITIES.index(self.capability):
            raise DataError(
                f"{where}: the job agreed on the kernels of {self.capability};"
                f" this lane has {most or 'none that are known'}",
                expected="a lane that was counted when the job started",
            )

    def environ(self, lane: DeviceLane) -> dict[str, str]:
        """Return the environment of a worker process for this job on this lane.

        It must be there before the process loads torch. Raises :class:`DataError` as :meth:`admit`.
        """
        self.admit(lane)
        values = lane.environ() | {"CUBLAS_WORKSPACE_CONFIG": CUBLAS_WORKSPACE}
        if self.capability is not None:
            values |= capability_environ(self.capability)
        if self.threads is not None:
            values |= {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        return values

    def to_json(self) -> dict[str, Any]:
        """Return the agreement as JSON values, for the job's checkpoints and log."""
        return asdict(self) | {"level": self.level.value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Agreement:
        """Return the agreement of :meth:`to_json`; raises :class:`DataError` for other values."""
        try:
            return cls(**{**values, "level": Level.parse(str(values["level"]))})
        except (KeyError, TypeError) as error:
            raise DataError(f"not an agreement on a level: {error}", value=dict(values)) from None


def usual_level(lanes: Sequence[DeviceLane]) -> Level:
    """Return D1 if all lanes run the same kernels or D2 could not stretch over them, else D2."""
    alike = len({lane.kernels for lane in lanes}) == 1
    mixed = len({lane.cuda_index is not None for lane in lanes}) > 1
    return Level.D1 if alike or mixed else Level.D2


def together(level: Level, lanes: Sequence[DeviceLane]) -> list[list[DeviceLane]]:
    """Return the lanes by those that one job may have together at a level."""
    if level is Level.D2:
        return [list(lanes)]
    kinds = dict.fromkeys(lane.kernels for lane in lanes)
    return [[lane for lane in lanes if lane.kernels == kind] for kind in kinds]


def agree(level: Level, lanes: Sequence[DeviceLane]) -> Agreement:
    """Return what ``lanes``, all those that the job may ever get, have in common at a level.

    Raises :class:`UsageError` if there are none, or if the level does not stretch over them.
    """
    if not lanes:
        raise UsageError(f"level {level}: no lanes; a job needs at least one")
    on_gpu = {lane.cuda_index is not None for lane in lanes}
    kernels = sorted({lane.kernels for lane in lanes})
    if level is Level.D0:
        return Agreement(level=level, on_gpu=True in on_gpu)
    if level is Level.D1:
        if len(kernels) > 1:
            raise UsageError(
                f"level D1 holds on one type; these lanes are of {', '.join(kernels)}."
                " Choose one type, or D2"
            )
        return Agreement(level=level, on_gpu=True in on_gpu, kernels=kernels[0])
    if len(on_gpu) > 1:
        raise UsageError("level D2 does not mix CPU lanes and GPUs: no kernels make them agree")
    if True in on_gpu:
        return Agreement(level=level, on_gpu=True)
    unknown = [lane.name for lane in lanes if lane.capability is None]
    if unknown and len(kernels) > 1:
        raise UsageError(
            f"level D2: lane {unknown[0]} states no CPU capability, so none can be common"
        )
    return Agreement(
        level=level,
        capability=lowest_capability(lanes),
        threads=min(lane.threads for lane in lanes),
    )


def configure(agreement: Agreement, lane: DeviceLane) -> dict[str, str]:
    """Set this process, which has its lane's environment, to the level; return what was set.

    For the run's log. Idempotent. Raises :class:`DataError` if torch was loaded without the
    environment of :meth:`Agreement.environ`, and so runs other kernels than agreed.
    """
    import torch  # noqa: PLC0415  the environment must be there first

    _check_environ(agreement, lane)
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory guards against reading it before writing; it changes no result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(agreement.threads or lane.threads)
    stated = {
        "level": agreement.level.value,
        "lane": lane.name,
        "gpu_type": lane.gpu_type,
        "slowdown": f"{lane.slowdown:g}",
        "deterministic algorithms": "strict",
        "float32 products": "in float32",
        "CPU kernels": torch.backends.cpu.get_cpu_capability().lower(),
        "CPU threads": str(torch.get_num_threads()),
    }
    if lane.cuda_index is not None:
        stated |= _configure_cuda(agreement, lane)
    return stated


def _check_environ(agreement: Agreement, lane: DeviceLane) -> None:
    import os  # noqa: PLC0415

    import torch  # noqa: PLC0415

    for name, value in agreement.environ(lane).items():
        if os.environ.get(name) != value:
            raise DataError(
                f"lane {lane.name}: the process was started without {name}={value}",
                expected="a worker process with the environment of its level",
            )
    asked = agreement.capability or lane.capability
    runs = torch.backends.cpu.get_cpu_capability().lower()
    if asked is not None and runs != asked:
        raise DataError(
            f"lane {lane.name}: torch runs the kernels of {runs}, not of {asked};"
            " it was loaded before the environment was set, or the CPU lacks them"
        )


def _configure_cuda(agreement: Agreement, lane: DeviceLane) -> dict[str, str]:
    import torch  # noqa: PLC0415

    torch.cuda.set_device(lane.device)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    matmul = torch.backends.cuda.matmul
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_bf16_reduced_precision_reduction = False
    # The backward pass of the memory-efficient kernel adds with atomics.
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    stated = {
        "GPU": torch.cuda.get_device_name(lane.device),
        "cuDNN": "deterministic, not tuned, no TF32",
        "attention": "flash or plain; not memory-efficient, not cuDNN",
        "cuBLAS workspace": CUBLAS_WORKSPACE,
    }
    if agreement.level is Level.D2:
        stated |= _fixed_kernels(lane)
    if lane.sm_fraction < 1:
        stated["multiprocessors"] = limit_multiprocessors(lane)
    return stated


def _fixed_kernels(lane: DeviceLane) -> dict[str, str]:
    import torch  # noqa: PLC0415

    try:
        from executor.kernels import register  # noqa: PLC0415
    except ImportError as error:
        raise DataError(
            f"lane {lane.name}: level D2 on a GPU needs Triton ({error})",
            expected="a torch that brings it, or one type of GPU at D1",
        ) from None
    # What is left is plain attention: products, softmax and products again.
    torch.backends.cuda.enable_flash_sdp(False)
    return {"attention": "plain", "kernels": register.use()}


_limits: dict[str, Any] = {}  # a green context lives as long as somebody holds it


def limit_multiprocessors(lane: DeviceLane) -> str:
    """Limit this process to the lane's share of the GPU's multiprocessors; return how.

    Under the MPS daemon ``CUDA_MPS_ACTIVE_THREAD_PERCENTAGE`` has done it. Without it the share is
    a green context (CUDA 12.4 and torch that has it), made current for the calling thread. Raises
    :class:`DataError` where neither is to be had.
    """
    import torch  # noqa: PLC0415

    total = torch.cuda.get_device_properties(lane.device).multi_processor_count
    share = f"{100 * lane.sm_fraction:g}%"
    if _mps_runs():
        return f"{share} by MPS; torch sees {total}"
    if lane.name not in _limits:
        # The driver gives them in groups, of 8 on Hopper; the next whole group is taken.
        wanted = max(8, round(total * lane.sm_fraction / 8) * 8)
        try:
            from torch.cuda.green_contexts import GreenContext  # noqa: PLC0415

            context: Any = GreenContext.create(num_sms=wanted, device_id=lane.cuda_index)
            context.set_context()
            # Of this thread. Autograd's own thread would run backward in the device's context, on a
            # stream that does not wait for this one's: gradients of what is not there yet.
            torch._C._set_multithreading_enabled(False)
        except (ImportError, RuntimeError) as error:
            raise DataError(
                f"lane {lane.name}: {share} of the multiprocessors cannot be had: {error}",
                expected="NVIDIA's MPS daemon, or CUDA and torch with green contexts",
            ) from None
        _limits[lane.name] = (context, wanted)
    return f"{_limits[lane.name][1]} of {total} by a green context"


def _mps_runs() -> bool:
    import os  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    # Where NVIDIA's daemon puts its pipe unless told otherwise (NVIDIA MPS documentation).
    usual = Path("/") / "tmp" / "nvidia-mps"
    return (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", usual)) / "control").exists()
