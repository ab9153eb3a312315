"""Profiles: how long a model's micro-batch takes on each GPU type, and what else a step costs.

A :class:`Profile` is recorded, not modelled: seconds of one micro-batch (forward and backward of
one logical worker, alone on its device) by model, batch size and GPU type, with the costs of
switching between logical workers, of the update, of the reduction and of rescaling. The rate model
that turns it and a worker map into a rate is ``policies.rates``. Files: ``profile_file``; published
tables: ``profile_sources``; estimates from data sheets: ``profile_roofline``.

Batch sizes in between are interpolated linearly, those outside extrapolated from the two nearest
(as EasyScale's simulator does with its logged batches), and the answer says so. A GPU type that was
not measured, or a batch size that one point alone would have to give, is refused.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

from traces.errors import DataError, did_you_mean

Origin = Literal["measured", "published", "fitted", "analytic"]
ORIGINS: tuple[str, ...] = get_args(Origin)
BY_TYPE = Mapping[str, float]
BY_BATCH = Mapping[int, Mapping[str, float]]


class Transfer(NamedTuple):
    """Seconds of one reduction over a given number of devices: ``latency_s + bytes / rate``."""

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceCost:
    """Cost of a full reduction of the gradient.

    Where it was measured, ``by_devices`` says it by number of devices; numbers in between are
    interpolated linearly, larger ones extrapolated from the last two (or taken from the last).
    Elsewhere it is modelled: ``2 ceil(log2 K)`` rounds of ``latency_s`` and ``2 (K - 1) / K`` of
    the bytes at ``bytes_per_s`` (infinite: the links alone are the limit).
    """

    latency_s: float = 0.0
    bytes_per_s: float = math.inf
    by_devices: Mapping[int, Transfer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _number("reduction: latency_s", self.latency_s, zero=True)
        _number("reduction: bytes_per_s", self.bytes_per_s, infinite=True)
        for devices, transfer in self.by_devices.items():
            where = f"reduction over {devices} devices"
            if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
                raise DataError(f"{where}: not a number of devices", expected="1 or more")
            _number(f"{where}: latency_s", transfer.latency_s, zero=True)
            _number(f"{where}: bytes_per_s", transfer.bytes_per_s, infinite=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """What was recorded of one model.

    ``microbatch_s[batch][gpu_type]``: seconds of one micro-batch, at least one. ``switch_s`` (a
    switch from one logical worker to the next), ``update_s`` (optimizer, once per global step) by
    GPU type, 0 where not said. ``gradient_bytes``: dense bytes a full reduction moves;
    ``row_bytes``: those that it moves besides for each logical worker of a job, for its tables'
    rows, as many as would take as long.
    ``memory_mib[batch][gpu_type]``. ``start_s``, ``rescale_s``, ``checkpoint_s``: seconds, None
    where not recorded. ``interval_s``: 95 % confidence intervals of ``microbatch_s``.
    """

    microbatch_s: BY_BATCH
    switch_s: BY_TYPE = field(default_factory=dict)
    update_s: BY_TYPE = field(default_factory=dict)
    gradient_bytes: float = 0.0
    row_bytes: float = 0.0
    memory_mib: BY_BATCH = field(default_factory=dict)
    start_s: float | None = None
    rescale_s: float | None = None
    checkpoint_s: float | None = None
    interval_s: Mapping[int, Mapping[str, tuple[float, float]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionError:
    """How well the rate model, fed with this profile, predicted steps it had not seen.

    Relative errors of step time over ``cases`` held-out worker maps.
    """

    cases: int
    mean_share: float
    max_share: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JobRates:
    """A profile at one model and batch size: all that planning for one job needs.

    Every GPU type of ``microbatch_s`` has an entry in ``switch_s`` and ``update_s``. ``notes`` says
    what was interpolated. Compared by identity, so that it can be the key of a memo.
    """

    model: str
    batch_size: int
    microbatch_s: BY_TYPE
    switch_s: BY_TYPE
    update_s: BY_TYPE
    gradient_bytes: float = 0.0
    reduce: ReduceCost = field(default_factory=ReduceCost)
    memory_mib: BY_TYPE = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.microbatch_s:
            raise DataError(f"rates of {self.model}: no GPU type", expected="at least one")
        for gpu_type, value in self.microbatch_s.items():
            _number(f"rates of {self.model}: micro-batch on {gpu_type}", value)
            _number(f"rates of {self.model}: switch on {gpu_type}", self.switch_s[gpu_type], True)
            _number(f"rates of {self.model}: update on {gpu_type}", self.update_s[gpu_type], True)

    @classmethod
    def plain(cls, microbatch_s: BY_TYPE, model: str = "model", batch_size: int = 1) -> JobRates:
        """Micro-batch times and nothing else: switches, update and reduction cost nothing."""
        nothing = dict.fromkeys(microbatch_s, 0.0)
        return cls(
            model=model,
            batch_size=batch_size,
            microbatch_s=dict(microbatch_s),
            switch_s=nothing,
            update_s=nothing,
        )

    def seconds(self, gpu_type: str) -> float:
        """Seconds of one micro-batch; raises :class:`DataError` for a type that is not known."""
        value = self.microbatch_s.get(gpu_type)
        if value is None:
            raise DataError(
                f"profile: {self.model} has no times on GPU type {gpu_type!r}",
                expected=did_you_mean(gpu_type, self.microbatch_s),
            )
        return value

    def scaled(self, factors: BY_TYPE) -> JobRates:
        """The same with the micro-batch times of some types multiplied."""
        times = {t: s * factors.get(t, 1.0) for t, s in self.microbatch_s.items()}
        return replace(self, microbatch_s=times)

    def only(self, gpu_types: Sequence[str]) -> JobRates:
        """The same with some types alone; raises :class:`DataError` if none of them is known."""
        times = {t: s for t, s in self.microbatch_s.items() if t in gpu_types}
        if not times:
            raise DataError(
                f"profile: {self.model} has no times on {', '.join(gpu_types) or 'no type'}",
                expected="one of " + ", ".join(self.microbatch_s),
            )
        return replace(self, microbatch_s=times)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Profile:
    """Recorded measurements of several models; compared by identity (:meth:`sha256` by content).

    ``origin``: where the numbers come from. ``machine``: fingerprint of the machine measured.
    ``source``: what was read, or who measured. Raises :class:`DataError` for numbers that cannot
    be: zero, negative, infinite or not a number.
    """

    models: Mapping[str, ModelProfile]
    origin: Origin
    reduce: ReduceCost = field(default_factory=ReduceCost)
    machine: Mapping[str, Any] | None = None
    prediction_error: PredictionError | None = None
    source: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.origin not in ORIGINS:
            raise DataError(
                "profile: unknown origin",
                value=self.origin,
                expected="one of " + ", ".join(ORIGINS),
            )
        if not self.models:
            raise DataError("profile: no models in it", expected="at least one")
        for name, model in self.models.items():
            _check_model(name, model)

    def rates(self, model: str, batch_size: int, workers: int = 0) -> JobRates:
        """Return the rates of one model at one batch size, on every type that can be given.

        ``workers``: logical workers of the job, whose rows of sparse tables are exchanged.

        Raises :class:`DataError` for a model that is not there, and for a batch size that can be
        had on no type; a type on which it cannot be had is left out.
        """
        return _rates(self, model, batch_size, workers if self._model(model).row_bytes else 0)

    def gpu_types(self, model: str) -> tuple[str, ...]:
        """GPU types on which a model was recorded, in order of first appearance."""
        rows = self._model(model).microbatch_s.values()
        return tuple(dict.fromkeys(gpu_type for row in rows for gpu_type in row))

    def scaled(self, factors: Mapping[tuple[str, str], float]) -> Profile:
        """The same with micro-batch times multiplied: ``factors[(model, gpu_type)]``."""
        models = {
            name: replace(
                model,
                microbatch_s={
                    batch: {t: s * factors.get((name, t), 1.0) for t, s in row.items()}
                    for batch, row in model.microbatch_s.items()
                },
                interval_s={},
            )
            for name, model in self.models.items()
        }
        return replace(self, models=models)

    def sha256(self) -> str:
        """SHA-256 of the content, as :meth:`save` writes it."""
        from traces.profile_file import written  # noqa: PLC0415  (it reads this module)

        return hashlib.sha256(written(self).encode()).hexdigest()

    def save(self, path: Any) -> None:
        """Write a JSON file; see ``docs/profiles.md``."""
        from traces.profile_file import save  # noqa: PLC0415

        save(self, path)

    @classmethod
    def load(cls, path: Any) -> Profile:
        """Read what :meth:`save` wrote; raises :class:`DataError` for anything else."""
        from traces.profile_file import load  # noqa: PLC0415

        return load(path)

    def _model(self, name: str) -> ModelProfile:
        found = self.models.get(name)
        if found is None:
            raise DataError(
                f"profile: no model {name!r} in it", expected=did_you_mean(name, self.models)
            )
        return found


@lru_cache(maxsize=4096)
def _rates(profile: Profile, name: str, batch_size: int, workers: int) -> JobRates:
    model = profile._model(name)
    if batch_size < 1:
        raise DataError(f"profile: {name} at batch size {batch_size}", expected="1 or more")
    times: dict[str, float] = {}
    notes: list[str] = []
    refused: list[str] = []
    for gpu_type in profile.gpu_types(name):
        points = [
            (b, row[gpu_type]) for b, row in sorted(model.microbatch_s.items()) if gpu_type in row
        ]
        found, note = _at(points, batch_size)
        if found is None:
            refused.append(f"{gpu_type}: {note}")
            continue
        times[gpu_type] = found
        if note:
            notes.append(f"{name} at batch size {batch_size} on {gpu_type}: {note}")
    if not times:
        raise DataError(
            f"profile: {name} cannot be given at batch size {batch_size} ({'; '.join(refused)})",
            expected="a batch size that was recorded, or two recorded ones to draw a line through",
        )
    notes += [f"{name} at batch size {batch_size} left out on {why}" for why in refused]
    memory: dict[str, float] = {}
    for gpu_type in times:
        sizes = [
            (b, row[gpu_type]) for b, row in sorted(model.memory_mib.items()) if gpu_type in row
        ]
        held, _ = _at(sizes, batch_size) if sizes else (None, "")
        if held is not None:
            memory[gpu_type] = held
    return JobRates(
        model=name,
        batch_size=batch_size,
        microbatch_s=times,
        switch_s={t: model.switch_s.get(t, 0.0) for t in times},
        update_s={t: model.update_s.get(t, 0.0) for t in times},
        gradient_bytes=model.gradient_bytes + workers * model.row_bytes,
        reduce=profile.reduce,
        memory_mib=memory,
        notes=tuple(notes),
    )


def _at(points: list[tuple[int, float]], batch: int) -> tuple[float | None, str]:
    """The value at a batch size, and how it was had; None and why if it cannot be."""
    for known, value in points:
        if known == batch:
            return value, ""
    if len(points) < 2:
        return None, f"recorded at batch size {points[0][0]} alone"
    inside = points[0][0] < batch < points[-1][0]
    (low, a), (high, b) = next(
        (pair for pair in pairwise(points) if batch < pair[1][0]), (points[-2], points[-1])
    )
    value = a + (b - a) * (batch - low) / (high - low)
    how = (
        f"{'interpolated' if inside else 'extrapolated'} linearly from batch sizes {low} and {high}"
    )
    if not value > 0.0:
        return None, f"{how} it would be {value:.6g} s"
    return value, how


def _check_model(name: str, model: ModelProfile) -> None:
    if not any(model.microbatch_s.values()):
        raise DataError(f"profile: {name} has no micro-batch times", expected="at least one")
    for kind, table, zero in (
        ("micro-batch", model.microbatch_s, False),
        ("memory", model.memory_mib, True),
    ):
        for batch, row in table.items():
            if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
                raise DataError(
                    f"profile: {name}: batch size", value=batch, expected="a whole number from 1"
                )
            for gpu_type, value in row.items():
                _number(f"profile: {name}: {kind} at batch size {batch} on {gpu_type}", value, zero)
    for kind, by_type in (("switch_s", model.switch_s), ("update_s", model.update_s)):
        for gpu_type, value in by_type.items():
            _number(f"profile: {name}: {kind} on {gpu_type}", value, zero=True)
    _number(f"profile: {name}: gradient_bytes", model.gradient_bytes, zero=True)
    _number(f"profile: {name}: row_bytes", model.row_bytes, zero=True)
    for kind in ("start_s", "rescale_s", "checkpoint_s"):
        seconds = getattr(model, kind)
        if seconds is not None:
            _number(f"profile: {name}: {kind}", seconds, zero=True)


def _number(where: str, value: object, zero: bool = False, infinite: bool = False) -> None:
    """Refuse what is not a positive finite number (or 0, or infinity, where it may be)."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
        if number > 0.0 and (infinite or number < math.inf):
            return
        if zero and number == 0.0:
            return
    raise DataError(
        f"{where} is not usable",
        value=value,
        expected="a finite number, 0 or more" if zero else "a positive finite number",
    )
