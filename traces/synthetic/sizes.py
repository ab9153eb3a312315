"""How big jobs are: GPU counts, shares and durations, as mixtures fitted to public traces.

Durations are mixtures of lognormals, one mixture per size class, each clipped to the longest run
the trace saw. The numbers are fits to the 82,247 jobs of Philly's flat table and the 8,152 pods of
openb; ``docs/traces/generators.md`` has every number with its source and each mixture's
Kolmogorov-Smirnov distance to the data. Gavel's recipe is the one its authors publish
(Narayanan et al., OSDI 2020, and the published generator's constants).

Left out: any link between duration and hour of day, and between duration and virtual cluster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from traces.errors import UsageError, did_you_mean
from traces.synthetic.streams import Streams

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

PHILLY_LONGEST_S = 4.63e6
OPENB_LONGEST_S = 1.25e7


class DurationLaw(Protocol):
    """A distribution of run times in seconds."""

    @property
    def mean_s(self) -> float:
        """Its mean, seconds."""

    def draw(self, streams: Streams, name: str, count: int) -> Floats:
        """``count`` run times from the streams called ``name``."""


@dataclass(frozen=True, slots=True)
class Lognormals:
    """A mixture of lognormals: ``parts`` is ``((weight, mu, sigma), ...)`` of ln seconds.

    Draws above ``longest_s`` are set to it. Weights need not sum to exactly 1; they are
    normalised, since published ones are rounded.
    """

    parts: tuple[tuple[float, float, float], ...]
    longest_s: float = math.inf

    @property
    def mean_s(self) -> float:
        """Mean in seconds, the clip included."""
        total = sum(weight for weight, _, _ in self.parts)
        mean = 0.0
        for weight, mu, sigma in self.parts:
            part = math.exp(mu + sigma * sigma / 2)
            if math.isfinite(self.longest_s):
                edge = (math.log(self.longest_s) - mu) / sigma
                part = part * _normal_cdf(edge - sigma) + self.longest_s * _normal_cdf(-edge)
            mean += weight / total * part
        return mean

    def draw(self, streams: Streams, name: str, count: int) -> Floats:
        """``count`` run times, seconds."""
        table = np.array(self.parts, dtype=np.float64)
        part = choose(streams(f"{name} part").random(count), table[:, 0])
        normal = streams(f"{name} value").standard_normal(count)
        seconds: Floats = np.exp(table[part, 1] + table[part, 2] * normal)
        return np.asarray(np.minimum(seconds, self.longest_s), dtype=np.float64)

    def cdf(self, seconds: Floats) -> Floats:
        """Share of run times at or below each of ``seconds`` (the law the fit was judged by)."""
        total = sum(weight for weight, _, _ in self.parts)
        logs = np.log(np.maximum(seconds, np.finfo(np.float64).tiny))
        share = np.zeros_like(logs)
        for weight, mu, sigma in self.parts:
            share += weight / total * np.array([_normal_cdf(x) for x in (logs - mu) / sigma])
        return np.where(seconds >= self.longest_s, 1.0, share)


@dataclass(frozen=True, slots=True)
class LogUniforms:
    """A mixture of log-uniforms: ``parts`` is ``((weight, low, high), ...)`` of log10 seconds."""

    parts: tuple[tuple[float, float, float], ...]

    @property
    def mean_s(self) -> float:
        """Mean in seconds."""
        return sum(
            weight * (10**high - 10**low) / ((high - low) * math.log(10))
            for weight, low, high in self.parts
        )

    def draw(self, streams: Streams, name: str, count: int) -> Floats:
        """``count`` run times, seconds."""
        table = np.array(self.parts, dtype=np.float64)
        part = choose(streams(f"{name} part").random(count), table[:, 0])
        place = streams(f"{name} value").random(count)
        low, high = table[part, 1], table[part, 2]
        return np.asarray(np.power(10.0, low + (high - low) * place), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Exponential:
    """Exponential run times: the M in M/M/c."""

    mean_s: float

    def draw(self, streams: Streams, name: str, count: int) -> Floats:
        """``count`` run times, seconds."""
        return streams(f"{name} value").exponential(self.mean_s, count)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Every run takes the same time: the D in M/D/1."""

    mean_s: float

    def draw(self, streams: Streams, name: str, count: int) -> Floats:
        """``count`` run times, seconds."""
        return np.full(count, self.mean_s)


@dataclass(frozen=True, slots=True)
class Hyperexponential:
    """Two exponentials with balanced means: mean ``mean_s``, squared coefficient of variation
    ``scv`` (at least 1). The usual stand-in for variable service in queueing theory.
    """

    mean_s: float
    scv: float

    def draw(self, streams: Streams, name: str, count: int) -> Floats:
        """``count`` run times, seconds."""
        short = 0.5 * (1 + math.sqrt((self.scv - 1) / (self.scv + 1)))
        is_short = streams(f"{name} part").random(count) < short
        weight = np.where(is_short, short, 1 - short)
        scale = self.mean_s / (2 * weight)
        return np.asarray(streams(f"{name} value").exponential(1.0, count) * scale)


@dataclass(frozen=True, slots=True)
class BoundedPareto:
    """Pareto with exponent ``alpha`` between ``low_s`` and ``high_s``: heavy, but with moments."""

    low_s: float
    high_s: float
    alpha: float

    @property
    def mean_s(self) -> float:
        """Mean in seconds."""
        ratio, alpha = self.low_s / self.high_s, self.alpha
        if math.isclose(alpha, 1.0):
            return self.low_s * -math.log(ratio) / (1 - ratio)
        rest = (1 - ratio ** (alpha - 1)) / (1 - ratio**alpha)
        return self.low_s * alpha / (alpha - 1) * float(rest)

    def draw(self, streams: Streams, name: str, count: int) -> Floats:
        """``count`` run times, seconds."""
        place = streams(f"{name} value").random(count)
        kept = 1 - place * (1 - (self.low_s / self.high_s) ** self.alpha)
        return np.asarray(self.low_s * np.power(kept, -1 / self.alpha), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Counts:
    """Integers with weights, such as GPU counts; weights are normalised."""

    values: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean value."""
        pairs = zip(self.values, self.weights, strict=True)
        return sum(v * w for v, w in pairs) / sum(self.weights)

    def draw(self, streams: Streams, name: str, count: int) -> Ints:
        """``count`` values from the stream called ``name``."""
        values = np.array(self.values, dtype=np.int64)
        return values[choose(streams(name).random(count), np.array(self.weights))]


def choose(uniform: Floats, weights: Floats) -> Ints:
    """Turn uniforms in [0, 1) into indices drawn with ``weights`` (normalised here)."""
    edges = np.cumsum(weights) / np.sum(weights)
    return np.minimum(np.searchsorted(edges, uniform, side="right"), len(weights) - 1)


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


# Philly. GPU classes of small bursts, then the counts inside the open-ended class.
PHILLY_SMALL_GPUS = Counts((1, 2, 4, 8, 12), (0.717, 0.019, 0.112, 0.133, 0.019))
PHILLY_BIG_GPUS = Counts((12, 16, 24, 32, 64, 128), (7, 199, 7, 67, 6, 3))
PHILLY_DURATIONS: Mapping[int, Lognormals] = {
    1: Lognormals(
        ((0.174, 4.16, 0.16), (0.149, 5.15, 1.01), (0.398, 7.56, 0.75), (0.279, 7.94, 2.17)),
        PHILLY_LONGEST_S,
    ),
    2: Lognormals(
        ((0.644, 2.89, 0.34), (0.184, 3.78, 1.45), (0.172, 11.40, 1.24)), PHILLY_LONGEST_S
    ),
    4: Lognormals(
        ((0.280, 5.33, 1.13), (0.551, 10.24, 1.67), (0.169, 11.67, 0.43)), PHILLY_LONGEST_S
    ),
    8: Lognormals(
        ((0.319, 6.22, 1.58), (0.249, 9.63, 0.79), (0.432, 12.20, 0.82)), PHILLY_LONGEST_S
    ),
    12: Lognormals(((0.504, 6.31, 2.32), (0.496, 11.62, 0.99)), PHILLY_LONGEST_S),
}
"""Keyed by the smallest GPU count of the class; 12 stands for 12 and more."""

# openb. Classes CPU, shared, one, multi; shares in thousandths of a GPU. The six named shares
# are 87 % of the shared pods; the next ten, counted in the same file, make up the rest.
OPENB_CLASSES = Counts((0, 1, 2, 3), (0.133, 0.378, 0.480, 0.009))
OPENB_MULTI_GPUS = Counts((2, 4, 8), (16, 15, 44))
OPENB_SHARES = Counts(
    (810, 470, 320, 650, 230, 460, 590, 160, 550, 220, 370, 110, 480, 50, 330, 350),
    (
        *(0.350, 0.244, 0.107, 0.082, 0.045, 0.042),
        *(0.024, 0.024, 0.023, 0.020, 0.015, 0.008, 0.006, 0.002, 0.002, 0.002),
    ),
)
OPENB_DURATIONS: tuple[Lognormals, ...] = (
    Lognormals(((0.24, 5.03, 0.09), (0.76, 7.01, 1.72)), OPENB_LONGEST_S),
    Lognormals(((0.392, 4.94, 1.06), (0.082, 6.91, 0.16), (0.527, 7.38, 2.01)), OPENB_LONGEST_S),
    Lognormals(((0.353, 5.03, 0.85), (0.596, 7.37, 1.15), (0.052, 10.12, 2.90)), OPENB_LONGEST_S),
    Lognormals(((0.679, 5.79, 1.49), (0.321, 10.26, 2.09)), OPENB_LONGEST_S),
)
OPENB_MEDIAN_CPU_MILLI = {0: 12_500, 1: 9_810, 2: 16_200, 4: 32_200, 8: 88_000}
OPENB_QOS = (("LS", 0.57), ("BE", 0.42), ("Burstable", 0.01))

GAVEL_GPUS = Counts((1, 2, 4, 8), (0.70, 0.10, 0.15, 0.05))
_MINUTE = math.log10(60.0)
GAVEL_DURATIONS = LogUniforms(
    ((0.8, 1.5 + _MINUTE, 3 + _MINUTE), (0.2, 3 + _MINUTE, 4 + _MINUTE)),
)

# Bounds of what can be asked for; within them every formula here stays finite.
_SHORTEST_S, _LONGEST_S = 1e-6, 1e12
LAWS = {
    "exponential": "exponential:MEAN_S",
    "fixed": "fixed:SECONDS",
    "hyperexponential": "hyperexponential:MEAN_S:SCV",
    "lognormal": "lognormal:MU:SIGMA",
    "pareto": "pareto:LOW_S:HIGH_S:ALPHA",
    "gavel": "gavel",
    "philly": "philly",
}


def duration_law(text: str) -> DurationLaw:
    """Build a law from text such as ``exponential:3600`` or ``lognormal:7.5:1.2``.

    ``philly`` is the one-GPU mixture, ``gavel`` Gavel's recipe. Raises :class:`UsageError`.
    """
    name, *fields = text.strip().split(":")
    if name not in LAWS:
        raise UsageError(f"duration {text!r}: unknown law; {did_you_mean(name, LAWS)}")
    wanted = LAWS[name].count(":")
    try:
        numbers = [float(f) for f in fields]
    except ValueError:
        numbers = []
    if len(fields) != wanted or len(numbers) != wanted or not all(map(math.isfinite, numbers)):
        raise UsageError(f"duration {text!r}: expected {LAWS[name]} with numbers")
    law = _law(name, numbers)
    if law is None:
        raise UsageError(
            f"duration {text!r}: out of range; seconds are 1e-6 to 1e12, HIGH_S above LOW_S, MU -30"
            " to 30, SIGMA above 0 to 10, SCV 1 to 1e6, ALPHA 0.01 to 100"
        )
    return law


def _law(name: str, numbers: list[float]) -> DurationLaw | None:
    law: DurationLaw | None = None
    match name, numbers:
        case "philly", []:
            law = PHILLY_DURATIONS[1]
        case "gavel", []:
            law = GAVEL_DURATIONS
        case "lognormal", [mu, sigma] if 0 < sigma <= 10 and abs(mu) <= 30:
            law = Lognormals(((1.0, mu, sigma),), _LONGEST_S)
        case "exponential", [mean] if _SHORTEST_S <= mean <= _LONGEST_S:
            law = Exponential(mean)
        case "fixed", [seconds] if _SHORTEST_S <= seconds <= _LONGEST_S:
            law = Fixed(seconds)
        case "hyperexponential", [mean, scv] if (
            _SHORTEST_S <= mean <= _LONGEST_S and 1 <= scv <= 1e6
        ):
            law = Hyperexponential(mean, scv)
        case "pareto", [low, high, alpha] if (
            _SHORTEST_S <= low <= high / 1.001 <= _LONGEST_S and 0.01 <= alpha <= 100
        ):
            law = BoundedPareto(low, high, alpha)
        case _:
            pass
    return law


def gpu_counts(text: str) -> Counts:
    """Build GPU counts from text: ``1``, ``1:0.7,2:0.1,4:0.15,8:0.05``, or ``gavel``.

    Raises :class:`UsageError`.
    """
    if text.strip() == "gavel":
        return GAVEL_GPUS
    values, weights = [], []
    for part in text.split(","):
        count, _, weight = part.strip().partition(":")
        try:
            values.append(int(count))
            weights.append(float(weight) if weight else 1.0)
        except ValueError as error:
            raise UsageError(
                f"gpus {text!r}: {part!r} is not COUNT or COUNT:WEIGHT, such as 1:0.7,8:0.3"
            ) from error
    if min(values) < 0 or max(values) > 1_000_000 or len(set(values)) < len(values):
        raise UsageError(f"gpus {text!r}: counts are 0 to 1000000, each once")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
        raise UsageError(f"gpus {text!r}: weights are 0 or more, and not all 0")
    return Counts(tuple(values), tuple(weights))
