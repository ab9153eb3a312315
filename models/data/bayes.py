"""How well anybody can do on the generator's data: its exact law, and the closed form beside it.

Source: the generator's definition (:mod:`models.data.generator`). A sample's score is
``T = h K + e`` with ``e`` standard normal and ``K`` the sum, over the events that match the
candidate's category, of an integer weight times a fair sign; the label is ``T > threshold``. Each
event matches with one probability, independently, so K's characteristic function is a product over
ages, and everything below is Fourier sums on the integers:

- who sees the newest ``visible`` events knows the visible part of K and nothing of the rest, so the
  best possible score is the posterior ``P(T > threshold | visible part)``;
- its AUC is a sum over the atoms of the visible part. For constant weights this is the convolution
  of a binomial count of matches with binomial signs; for others the same on a finer lattice.

Closed form: if K is taken as normal, the score and T have correlation ``r``, and the orthant
formula of three normals gives ``AUC = 1/2 + (2/pi) asin(r / sqrt 2)``.

Lengths: a truncated view does not tell a history of ``visible`` events from a longer one, while a
shorter one shows its whole length. So there are two classes of posteriors, however many lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, xlogy

from models.errors import ModelError

Floats = NDArray[np.float64]
_LATTICE_PER_NOISE = 512  # lattice points per standard deviation of the noise
_NEGLIGIBLE_LOG = math.log(2e16)  # tails beyond the grid weigh less than 1e-16
_NOISE_REACH = 9.0
_ROUNDING = 1e-15  # what a Fourier sum leaves where the mass is none


@dataclass(frozen=True, slots=True)
class Lattice:
    """Integer weights by age and the size of one lattice step in units of the noise."""

    weights: NDArray[np.int64]
    step: float

    @staticmethod
    def of(shape: Floats, match: float, tau: float) -> Lattice:
        """Round ``shape`` (L,), weights by age - 1, so that the signal has deviation ``tau``.

        ``match`` is the probability that an event counts. The rounded weights *are* the
        generator's weights, so that its law is exact; none that was positive becomes zero.
        """
        scale = tau / math.sqrt(match * float(np.sum(shape**2)))
        weights = np.rint(shape * scale * _LATTICE_PER_NOISE).astype(np.int64)
        weights = np.where(shape > 0, np.maximum(weights, 1), 0)
        return Lattice(weights, tau / math.sqrt(match * float(np.sum(weights**2))))


class Law:
    """The joint law of label and visible events of a generator.

    ``length_mass`` (L+1,) is the probability of each length 0..L. ``base_rate`` fixes
    ``threshold``: the share of positive labels over all lengths.
    """

    def __init__(
        self, lattice: Lattice, *, match: float, tau: float, base_rate: float, length_mass: Floats
    ) -> None:
        self.lattice = lattice
        self.tau = tau
        self.base_rate = base_rate
        self.length_mass = length_mass
        self._match = match
        self.size = self._grid_size()
        self._cosine = np.cos(2 * np.pi * np.arange(self.size) / self.size)
        self._frequency = np.arange(self.size // 2 + 1, dtype=np.int64)
        # Lattice values of the grid, in the order of a Fourier transform: 0, 1, ..., -2, -1.
        self.values: NDArray[np.int64] = np.fft.ifftshift(np.arange(self.size) - self.size // 2)

    @property
    def longest(self) -> int:
        """L, the longest history."""
        return len(self.lattice.weights)

    def _grid_size(self) -> int:
        """Return a power of two that holds K and the noise but for 1e-16 of their mass."""
        reach = np.abs(self.lattice.weights * self.lattice.step)
        # Bernstein's inequality: variance tau^2, no term larger than the largest weight.
        third = float(reach.max()) * _NEGLIGIBLE_LOG / 3
        tail = third + math.sqrt(third**2 + 2 * self.tau**2 * _NEGLIGIBLE_LOG)
        half = (min(float(reach.sum()), tail) + 2 * _NOISE_REACH) / self.lattice.step
        return int(2 ** math.ceil(math.log2(2 * half)))

    def _factor(self, weight: int) -> Floats:
        """Characteristic function of one event of a weight, at the grid's frequencies."""
        cosine = self._cosine[(self._frequency * weight) % self.size]
        return (1 - self._match) + self._match * cosine

    def _sum_of(self, first: int, last: int) -> Floats:
        """Characteristic function of the ages first..last together."""
        weights, counts = np.unique(self.lattice.weights[first - 1 : last], return_counts=True)
        product = np.ones(len(self._frequency))
        for weight, count in zip(weights.tolist(), counts.tolist(), strict=True):
            if weight:
                product *= self._factor(weight) ** count
        return product

    def _mixture(self, first: int, mass: Floats) -> Floats:
        """Sum over n of mass[n] times the characteristic function of the ages first..first-1+n."""
        support = np.flatnonzero(mass)
        if len(support) == 1:
            return float(mass[support[0]]) * self._sum_of(first, first - 1 + int(support[0]))
        total = np.zeros(len(self._frequency))
        product = np.ones(len(self._frequency))
        last, factor = 0, self._factor(0)
        for more, share in enumerate(mass.tolist()):
            weight = int(self.lattice.weights[first + more - 2]) if more else 0
            if weight:
                # Weights fall slowly, so the next age mostly has the same factor.
                last, factor = (last, factor) if weight == last else (weight, self._factor(weight))
                product *= factor
            if share:
                total += share * product
        return total

    def _atoms(self, characteristic: Floats) -> Floats:
        """Masses on ``values`` of a characteristic function."""
        mass = np.fft.irfft(characteristic, self.size)
        return np.where(mass > _ROUNDING, mass, 0.0)

    def _below(self, characteristic: Floats, shift: float) -> Floats:
        """P(lattice part + noise < x - shift) at x = step times ``values``, (size,)."""
        angle = 2 * np.pi * self._frequency / self.size / self.lattice.step
        smooth = characteristic * np.exp(-0.5 * angle**2 - 1j * angle * shift)
        density = np.fft.fftshift(np.fft.irfft(smooth, self.size))
        # Half of a cell's mass lies below its centre: exact to the square of the lattice step.
        below = np.cumsum(density) - 0.5 * density
        return np.fft.ifftshift(np.clip(below, 0.0, 1.0))

    @cached_property
    def threshold(self) -> float:
        """The value of T above which the label is 1; exactly 0 for a base rate of one half."""
        if self.base_rate == 0.5:
            return 0.0
        below = np.fft.fftshift(self._below(self._mixture(1, self.length_mass), 0.0))
        grid = np.fft.fftshift(self.values) * self.lattice.step
        return float(np.interp(1 - self.base_rate, below, grid))

    def posterior_whole(self, k: NDArray[np.int64]) -> Floats:
        """P(label = 1) given the whole K of histories that are seen to their end."""
        return np.asarray(ndtr(k * self.lattice.step - self.threshold), dtype=np.float64)

    def posterior_cut(self, visible: int) -> Floats:
        """P(label = 1) given the visible part of K, at ``values``, for histories that are cut."""
        tail = self.length_mass[visible:]
        # The rest of K is symmetric, so P(rest + noise > c) = P(rest + noise < -c).
        return self._below(self._mixture(visible + 1, tail / tail.sum()), self.threshold)

    def classes(self, visible: int) -> tuple[Floats, Floats]:
        """Return (masses, posteriors) of everything that can be seen of the newest events."""
        visible = self.check_visible(visible)
        masses, posteriors = [], []
        if (short := self.length_mass[:visible]).any():
            masses.append(self._atoms(self._mixture(1, short)))
            posteriors.append(self.posterior_whole(self.values))
        if (cut := float(self.length_mass[visible:].sum())) > 0:
            masses.append(cut * self._atoms(self._sum_of(1, visible)))
            posteriors.append(self.posterior_cut(visible))
        mass = np.concatenate(masses)
        seen = mass > 0
        return mass[seen] / mass.sum(), np.concatenate(posteriors)[seen]

    def check_visible(self, visible: int) -> int:
        """Return ``visible``, at most L; raise :class:`ModelError` if it is negative."""
        if visible < 0:
            raise ModelError("no such view", where="visible", value=visible, expected="0 or more")
        return min(visible, self.longest)

    def auc(self, visible: int) -> float:
        """The highest AUC anything can reach that sees the newest ``visible`` events."""
        mass, posterior = self.classes(visible)
        # Posteriors that Fourier sums tell apart only by rounding are ties.
        levels, which = np.unique(np.round(posterior, 12), return_inverse=True)
        weight = np.bincount(which, weights=mass)
        positive, negative = weight * levels, weight * (1 - levels)
        lower = np.cumsum(negative) - 0.5 * negative
        return float(np.sum(positive * lower) / (positive.sum() * negative.sum()))

    def logloss(self, visible: int) -> float:
        """The lowest mean binary cross-entropy, in nats, that anything can reach."""
        mass, posterior = self.classes(visible)
        entropy = -xlogy(posterior, posterior) - xlogy(1 - posterior, 1 - posterior)
        return float(np.sum(mass * entropy))

    def auc_closed_form(self, visible: int) -> float:
        """The AUC if K were normal; for one length and a base rate of one half only.

        Raises :class:`ModelError` where the formula does not hold.
        """
        visible = self.check_visible(visible)
        if self.base_rate != 0.5 or self.length_mass[-1] != 1:
            raise ModelError(
                "the closed form holds for one length and balanced labels",
                expected="auc(), which is exact for any",
            )
        squares = self.lattice.weights.astype(np.float64) ** 2
        share = float(squares[:visible].sum() / squares.sum())
        r = math.sqrt(share) * self.tau / math.sqrt(1 + self.tau**2)
        return 0.5 + 2 / math.pi * math.asin(r / math.sqrt(2))


def tau_for_auc(auc: float) -> float:
    """Return the signal's deviation at which the closed form gives ``auc`` for whole histories.

    Raises :class:`ModelError` for an AUC outside (0.5, 1): without noise the AUC is 1.
    """
    if not 0.5 < auc < 1:
        raise ModelError("no signal gives this AUC", where="auc", value=auc, expected="0.5 to 1")
    r = math.sqrt(2) * math.sin(math.pi * (auc - 0.5) / 2)
    return r / math.sqrt(1 - r**2)
