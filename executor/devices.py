"""Device lanes: what a job of the executor can run on, as values, and their text form.

A lane is one place where one worker process runs: a CUDA device, a fraction of one, or some cores
of the CPU with one set of kernels. ``gpu_type`` is its type for policies and profiles. CPU lanes
are real heterogeneity without a GPU: with another ``ATEN_CPU_CAPABILITY`` torch runs other kernels
and gives other bits; a lane also limits oneDNN and MKL to what a CPU of that capability has, so
that it computes as such a CPU would. A lane may be slowed by a stated factor; its type says so.

The text form is a list of lanes, joined by commas::

    cpu-avx512x2,cpu-default:slowdown=2        three CPU lanes, the last at half its speed
    cuda:0:sm=50%,cuda:0:sm=50%                two halves of one GPU (cuda:0x2:sm=50% is the same)
    auto                                       every CUDA device, or one CPU lane for each core

Leaves out: what is found on a machine (``executor.machine``), and memory limits, which are stated
and not enforced. A fraction limits the SMs a lane's kernels may occupy, not its memory bandwidth.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from traces.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    from executor.machine import Machine

CAPABILITIES = ("default", "avx2", "avx512")
"""Values of ``ATEN_CPU_CAPABILITY`` on x86, lowest first; each runs what the ones before it run."""

_ONEDNN = {"default": "SSE41", "avx2": "AVX2", "avx512": "AVX512_CORE"}
_MKL = {"default": "SSE4_2", "avx2": "AVX2", "avx512": "AVX512"}
_ITEM = re.compile(
    r"^(?P<place>(?:auto|cuda:\d+|cpu(?:-(?:default|avx2|avx512))?)(?=x\d+(?::|$)|:|$)|[^:]+)"
    r"(?:x(?P<count>\d+))?(?P<options>(?::.*)?)$"
)
_OPTIONS = ("slowdown", "sm", "threads", "memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLane:
    """One lane. ``name`` is unique on its machine; ``device`` is torch's name of the device.

    ``capability``: the value for ``ATEN_CPU_CAPABILITY``, or None for whatever the CPU has.
    ``slowdown``: every micro-batch is made to last this many times as long (1: not at all).
    ``sm_fraction``: share of the GPU's streaming multiprocessors, in (0, 1]. ``memory_mib``: None
    if unknown. ``threads``: of torch on the CPU. ``cpus``: cores the process is bound to; none
    means any. Raises :class:`UsageError` for values out of range.
    """

    name: str
    gpu_type: str
    device: str = "cpu"
    capability: str | None = None
    slowdown: float = 1.0
    sm_fraction: float = 1.0
    memory_mib: int | None = None
    threads: int = 1
    cpus: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        on_cpu = self.device == "cpu"
        for field, ok, expected in (
            ("name", bool(self.name), "a name"),
            ("device", on_cpu or self.cuda_index is not None, "'cpu' or 'cuda:N'"),
            (
                "capability",
                self.capability is None or (on_cpu and self.capability in CAPABILITIES),
                "on the CPU one of " + ", ".join(CAPABILITIES) + ", or None",
            ),
            ("slowdown", 1 <= self.slowdown < math.inf, "1 or more"),
            (
                "sm_fraction",
                self.sm_fraction == 1 or (not on_cpu and 0 < self.sm_fraction < 1),
                "1, or on a GPU more than 0 and at most 1",
            ),
            ("memory_mib", self.memory_mib is None or self.memory_mib > 0, "1 or more"),
            ("threads", self.threads >= 1, "1 or more"),
        ):
            if not ok:
                found = getattr(self, field)
                raise UsageError(f"lane {self.name!r}: {field} is {found!r}; expected {expected}")

    @property
    def cuda_index(self) -> int | None:
        """The number of the CUDA device, or None on the CPU."""
        head, _, number = self.device.partition(":")
        return int(number) if head == "cuda" and number.isdigit() else None

    @property
    def kernels(self) -> str:
        """What decides the bits of torch's own kernels here; lanes of equal text give equal bits.

        The slow-down factor is not part of it. A share of a GPU is: libraries choose kernels by the
        number of multiprocessors.
        """
        return self.gpu_type.partition("-slow")[0]

    def environ(self) -> dict[str, str]:
        """Return what must be in a worker process's environment before it loads torch.

        ``CUDA_MPS_ACTIVE_THREAD_PERCENTAGE`` takes effect only where the MPS daemon runs; without
        it :func:`executor.levels.limit_multiprocessors` makes a green context in the process.
        """
        values = {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        if self.capability is not None:
            values |= capability_environ(self.capability)
        if self.sm_fraction < 1:
            values["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{100 * self.sm_fraction:g}"
        return values

    def to_json(self) -> dict[str, Any]:
        """Return the lane as JSON values."""
        return dataclasses.asdict(self) | {"cpus": list(self.cpus)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DeviceLane:
        """Return the lane of :meth:`to_json`; raises :class:`DataError` for other values."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise DataError("a lane has no such field", value=key, expected=", ".join(known))
        try:
            return cls(**{**values, "cpus": tuple(values.get("cpus", ()))})
        except TypeError as error:
            raise DataError(f"not a lane: {error}", value=dict(values)) from None


def capability_environ(capability: str) -> dict[str, str]:
    """Return the variables that hold torch, oneDNN and MKL to one CPU capability.

    MKL's conditional numerical reproducibility (``MKL_CBWR``) is set to the same branch, so that
    the code path does not depend on the CPU's model or on how memory is aligned. Sources:
    aten/src/ATen/native/DispatchStub.cpp; oneDNN, "CPU Dispatcher Control"; oneMKL Developer Guide,
    "Obtaining Numerically Reproducible Results".
    """
    if capability not in CAPABILITIES:
        raise UsageError(f"CPU capability {capability!r}: {did_you_mean(capability, CAPABILITIES)}")
    return {
        "ATEN_CPU_CAPABILITY": capability,
        "ONEDNN_MAX_CPU_ISA": _ONEDNN[capability],
        "MKL_ENABLE_INSTRUCTIONS": _MKL[capability],
        "MKL_CBWR": _MKL[capability],
    }


def lowest_capability(lanes: Iterable[DeviceLane]) -> str | None:
    """Return the highest capability that all the CPU lanes have, or None if none states one."""
    stated = [lane.capability for lane in lanes if lane.capability is not None]
    return min(stated, key=CAPABILITIES.index, default=None)


def parse_lanes(text: str, machine: Machine) -> tuple[DeviceLane, ...]:
    """Return the lanes that ``text`` describes, checked against what the machine has.

    The form is ``PLACE[xCOUNT][:key=value...]``, joined by commas. A place is ``auto``, ``cpu``
    (the best kernels there are), ``cpu-CAPABILITY`` or ``cuda:N``; keys are ``slowdown``, ``sm`` (a
    percentage, GPUs only), ``threads`` (cores of one lane) and ``memory`` (MiB). CPU lanes are
    bound to cores in turn, starting again when there are more lanes than cores. Raises
    :class:`UsageError` for a text that is not of that form, and :class:`DataError` for a lane this
    machine lacks.
    """
    asked = [ask for item in text.split(",") for ask in _read(item.strip(), text, machine)]
    share_mib = machine.memory_mib // max(1, sum(ask.place.startswith("cpu") for ask in asked))
    lanes: list[DeviceLane] = []
    core = 0
    taken: dict[str, int] = {}
    for ask in asked:
        number = taken.get(ask.place, 0)
        taken[ask.place] = number + 1
        if ask.place.startswith("cuda"):
            lanes.append(_cuda_lane(ask, number, machine))
            continue
        cores = tuple(machine.cores[(core + i) % len(machine.cores)] for i in range(ask.threads))
        core += ask.threads
        lanes.append(_cpu_lane(ask, number, tuple(sorted(set(cores))), share_mib))
    _check_shares(lanes, text)
    return tuple(lanes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    """One lane as asked for."""

    place: str
    slowdown: float = 1.0
    sm: float = 1.0
    threads: int = 1
    memory: int | None = None


def _read(item: str, text: str, machine: Machine) -> list[_Ask]:
    """Return the lanes of one item of the list."""
    match = _ITEM.match(item)
    if match is None:
        raise UsageError(
            f"lanes {text!r}: {item!r} is not PLACE[xCOUNT][:key=value...], for example"
            " cpu-avx512x2, cpu-default:slowdown=2 or cuda:0:sm=50%"
        )
    count = int(match["count"] or 1)
    if count < 1:
        raise UsageError(f"lanes {text!r}: {item!r} asks for no lane; a count is 1 or more")
    options = _options(match["options"], item, text)
    if match["place"] == "auto":
        if match["count"] or options:
            raise UsageError(f"lanes {text!r}: 'auto' takes no count and no option")
        return _automatic(machine)
    place = _present(match["place"], text, machine)
    if "sm" in options and not place.startswith("cuda"):
        raise UsageError(f"lanes {text!r}: {item!r}: sm is a share of a GPU; a CPU has threads")
    return [_Ask(place=place, **options)] * count


def _options(text: str, item: str, whole: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for part in text.split(":")[1:]:
        key, equals, value = part.partition("=")
        where = f"lanes {whole!r}: {item!r}"
        if not equals:
            raise UsageError(f"{where}: {part!r} is not key=value")
        if key not in _OPTIONS:
            raise UsageError(f"{where}: unknown key {key!r}; {did_you_mean(key, _OPTIONS)}")
        if key in values:
            raise UsageError(f"{where}: {key} is given twice")
        try:
            values[key] = _number(key, value)
        except ValueError as error:
            raise UsageError(f"{where}: {key} is {value!r}; expected {error}") from None
    return values


def _number(key: str, text: str) -> float | int:
    """The value of one option; a ValueError says what it should have been."""
    whole = key in {"threads", "memory"}
    expected = {"sm": "a percentage, as in sm=50%", "slowdown": "a number of 1 or more"}
    digits = text.removesuffix("%") if key == "sm" else text
    try:
        value = int(digits) if whole else float(digits)
    except ValueError:
        value = -1
    if key == "sm":
        value = value / 100 if text.endswith("%") and 0 < value <= 100 else -1
    if not math.isfinite(value) or value < (0 if key == "sm" else 1):
        raise ValueError(expected.get(key, "a whole number of 1 or more"))
    return value


def _automatic(machine: Machine) -> list[_Ask]:
    if machine.gpus:
        return [_Ask(place=f"cuda:{gpu.index}") for gpu in machine.gpus]
    return [_Ask(place=_best_cpu(machine))] * len(machine.cores)


def _best_cpu(machine: Machine) -> str:
    return f"cpu-{machine.capabilities[-1]}" if machine.capabilities else "cpu"


def _present(place: str, text: str, machine: Machine) -> str:
    """The place, if the machine has it; ``cpu`` by the name of its capability."""
    if place == "cpu":
        return _best_cpu(machine)
    if place.startswith("cuda:"):
        found = [f"cuda:{gpu.index}" for gpu in machine.gpus]
        if place not in found:
            have = ", ".join(found) or "no CUDA device"
            raise DataError(f"lanes {text!r}: this machine has no {place}; it has {have}")
        return place
    kind, _, capability = place.partition("-")
    if kind != "cpu" or capability not in CAPABILITIES:
        known = ["auto", "cpu", *(f"cpu-{c}" for c in CAPABILITIES), "cuda:0"]
        raise UsageError(f"lanes {text!r}: unknown place {place!r}; {did_you_mean(place, known)}")
    if capability not in machine.capabilities:
        have = ", ".join(f"cpu-{c}" for c in machine.capabilities) or "cpu only"
        raise DataError(f"lanes {text!r}: this CPU cannot run {place}; it has {have}")
    return place


def _cpu_lane(ask: _Ask, number: int, cpus: tuple[int, ...], share_mib: int) -> DeviceLane:
    _, _, capability = ask.place.partition("-")
    slowed = "" if ask.slowdown == 1 else f"-slow{ask.slowdown:g}"
    threads = "" if ask.threads == 1 else f"-{ask.threads}threads"
    return DeviceLane(
        name=f"{ask.place}/{number}",
        gpu_type=f"{ask.place}{threads}{slowed}",
        capability=capability or None,
        slowdown=ask.slowdown,
        memory_mib=ask.memory or share_mib,
        threads=ask.threads,
        cpus=cpus,
    )


def _cuda_lane(ask: _Ask, number: int, machine: Machine) -> DeviceLane:
    gpu = next(gpu for gpu in machine.gpus if f"cuda:{gpu.index}" == ask.place)
    share = "" if ask.sm == 1 else f"-sm{100 * ask.sm:g}"
    slowed = "" if ask.slowdown == 1 else f"-slow{ask.slowdown:g}"
    return DeviceLane(
        name=f"{ask.place}/{number}",
        gpu_type=f"{gpu.gpu_type}{share}{slowed}",
        device=ask.place,
        slowdown=ask.slowdown,
        sm_fraction=ask.sm,
        memory_mib=ask.memory or int(gpu.memory_mib * ask.sm),
        threads=ask.threads,
    )


def _check_shares(lanes: Sequence[DeviceLane], text: str) -> None:
    """Refuse more than the whole of a GPU."""
    shares: dict[str, float] = {}
    for lane in lanes:
        if lane.cuda_index is not None:
            shares[lane.device] = shares.get(lane.device, 0) + lane.sm_fraction
    for device, share in shares.items():
        if share > 1 + 1e-9:
            raise UsageError(
                f"lanes {text!r}: {device} is given out {100 * share:g}%; at most 100%"
            )
