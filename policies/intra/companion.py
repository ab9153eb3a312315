"""The companion: EasyScale's module that knows one job (SC'23, section 3.3), with exact plans.

Best worker map for the GPUs held, proposals for more with their speed-up per GPU, what fewer would
cost, rates learned from progress, fallback when a change did not help. The parts are pure functions
in ``policies.intra`` (``balance``, ``growth``, ``learning``, ``worth``); this is their policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from policies.contract import IntraJobPolicy, Proposal
from policies.intra.balance import Counts, Fit, best, spread
from policies.intra.growth import growths, losses, waste_share
from policies.intra.learning import Memory, Verdict, held_of, judge, observe
from policies.intra.worth import Worth, equation_1
from policies.rates import UNLIMITED, Comm, Layout, rates_of, reference_s
from traces import Elastic, Profile, UsageError, WorkerMap
from traces.errors import did_you_mean
from traces.profile import JobRates
from traces.workermap import Gpu, GpuCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The best plan for some GPUs.

    ``gpus`` used and ``released`` by type; ``workers``: logical workers on each GPU used, by type,
    most first; ``step_s``: the step time; ``worth``: Equation 1 of it, switches left out.
    """

    gpus: Mapping[str, int]
    released: Mapping[str, int]
    workers: Mapping[str, tuple[int, ...]]
    step_s: float
    worth: Worth


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """``fewer`` GPUs of a type that a job could give up: the share of its rate it would lose.

    ``per_gpu``: the same over ``fewer``. ``gpus``: what it would still use, by type.
    """

    gpu_type: str
    fewer: int
    lost: float
    per_gpu: float
    gpus: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Companion(IntraJobPolicy):
    """The shortest step on the GPUs held; growth by speed-up per GPU.

    ``max_waste``: plans that leave a larger share of their GPUs' speed idle are not proposed.
    ``top``: proposals per GPU type, 0 for all. ``weight``: how far one observed step moves the
    rates that were believed. ``least_gain``: a growth must shorten the step by this share, or it is
    undone.
    """

    max_waste: float = 0.30
    top: int = 1
    weight: float = 0.5
    least_gain: float = 0.0
    name: ClassVar[str] = "companion"

    def __post_init__(self) -> None:
        for name, low, high in (("max_waste", 0, 1), ("weight", 0, 1), ("least_gain", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"companion: {name} is {getattr(self, name)}; expected 0 to 1")
        if self.weight == 0.0:
            raise UsageError("companion: weight is 0; expected more, or nothing is ever learned")
        if self.top < 0:
            raise UsageError(f"companion: top is {self.top}; expected 0 (all) or more")

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            "The worker map is the fastest there is for the GPUs and the profile, by exact search;"
            " of equally fast ones that with fewest GPUs, then with the slowest of them.",
            "A GPU that would hold no logical worker is left out of the map, to be given back.",
            "A job that may not mix types uses the one type on which it is fastest.",
            f"Proposals are ranked by relative speed-up per GPU, equal ones by speed-up;"
            f" {self.top or 'all'} for each type, none that wastes over {self.max_waste:.0%}.",
            "Communication is what the profile says of it; the links of a placement are not known"
            " before it is made.",
        )

    def assign(self, elastic: Elastic, gpus: Sequence[Gpu], profile: Profile) -> WorkerMap:
        """Return the fastest worker map; ranks run over the GPUs with most workers first.

        Raises :class:`UsageError` if no GPU is of a type that the profile knows.
        """
        rates = rates_of(profile, elastic)
        types = tuple(rates.microbatch_s)
        by_type: dict[str, list[Gpu]] = {t: [] for t in types}
        on_node: dict[int, int] = {}
        for gpu in gpus:
            if gpu.gpu_type in by_type:
                by_type[gpu.gpu_type].append(gpu)
            on_node[gpu.node] = on_node.get(gpu.node, 0) + 1
        fit = self._fit(elastic, rates, tuple(len(by_type[t]) for t in types))
        if fit is None:
            raise _no_plan(elastic, rates, {gpu.gpu_type: 1 for gpu in gpus})
        seats: list[tuple[int, Gpu]] = []
        for t, some, counts in zip(
            types, fit.gpus, spread(rates, elastic.num_workers, fit.gpus), strict=True
        ):
            # GPUs of nodes where the job holds most stay, so that its messages cross fewer links.
            chosen = sorted(by_type[t], key=lambda g: (-on_node[g.node], g.node, g.gpu))[:some]
            seats += zip(counts, chosen, strict=True)
        seats.sort(key=lambda seat: (-seat[0], seat[1].node, seat[1].gpu))
        return WorkerMap(
            tuple((gpu.node, gpu.gpu) for _, gpu in seats), tuple(count for count, _ in seats)
        )

    def plan(
        self, elastic: Elastic, gpus: GpuCounts, profile: Profile, comm: Comm = UNLIMITED
    ) -> Plan:
        """Return the best plan for GPUs by type; raises :class:`UsageError` if there is none."""
        rates = rates_of(profile, elastic)
        fit = self._fit(elastic, rates, _counts(rates, gpus), comm)
        if fit is None:
            raise _no_plan(elastic, rates, gpus)
        workers = spread(rates, elastic.num_workers, fit.gpus)
        used = _named(rates, fit.gpus)
        slots = [max(some, default=0) for some in workers]
        return Plan(
            gpus=used,
            released={t: n - used.get(t, 0) for t, n in gpus.items() if n > used.get(t, 0)},
            workers={t: w for t, w in zip(rates.microbatch_s, workers, strict=True) if w},
            step_s=fit.step_s,
            worth=equation_1(
                tuple(rates.microbatch_s.values()), fit.gpus, slots, elastic.num_workers
            ),
        )

    def proposals(
        self, elastic: Elastic, held: GpuCounts, free: GpuCounts, profile: Profile
    ) -> Sequence[Proposal]:
        """Return the best increments, the largest speed-up per GPU first."""
        rates = rates_of(profile, elastic)
        have = _counts(rates, held)
        # No more than there are workers can help; so a full and a half empty cluster ask the same.
        reachable = _counts(rates, self._reachable(elastic, held, free))
        spare = tuple(min(n, elastic.num_workers) for n in reachable)
        taken: dict[int, int] = {}
        found: list[Proposal] = []
        for growth in growths(
            rates,
            elastic.num_workers,
            have,
            spare,
            elastic.max_gpus,
            UNLIMITED,
            self.max_waste,
            0.0 if any(have) else reference_s(profile, elastic),
        ):
            g = growth.type_index
            taken[g] = taken.get(g, 0) + 1
            if growth.fit.num_gpus < elastic.least_gpus or (self.top and taken[g] > self.top):
                continue
            found.append(
                Proposal(
                    gpu_type=tuple(rates.microbatch_s)[g],
                    more=growth.more,
                    speedup=growth.speedup,
                    gain=growth.gain,
                    step_s=growth.fit.step_s,
                    gpus=_named(rates, growth.fit.gpus),
                    released=_named(
                        rates,
                        tuple(max(n - u, 0) for n, u in zip(have, growth.fit.gpus, strict=True)),
                    ),
                    waste_share=waste_share(rates, elastic.num_workers, growth.fit),
                )
            )
        return found

    def releases(self, elastic: Elastic, held: GpuCounts, profile: Profile) -> Sequence[Release]:
        """Return what a job could give up, the smallest loss per GPU first."""
        rates = rates_of(profile, elastic)
        types = tuple(rates.microbatch_s)
        return [
            Release(
                gpu_type=types[loss.type_index],
                fewer=loss.fewer,
                lost=loss.lost,
                per_gpu=loss.per_gpu,
                gpus=_named(rates, loss.fit.gpus),
            )
            for loss in losses(
                rates,
                elastic.num_workers,
                _counts(rates, held),
                elastic.max_gpus,
                least=elastic.least_gpus,
            )
        ]

    def observe(
        self,
        memory: Memory,
        elastic: Elastic,
        layout: Layout,
        step_s: float,
        profile: Profile,
        comm: Comm = UNLIMITED,
    ) -> Memory:
        """Learn from an observed step (``policies.intra.learning``)."""
        rates = rates_of(profile, elastic)
        return observe(memory, rates, layout, step_s, comm, weight=self.weight)

    def judge(self, memory: Memory, step_s: float) -> Verdict | None:
        """Say whether the last change of GPUs helped, given a step since."""
        return judge(memory, step_s, least_gain=self.least_gain)

    def _fit(
        self, elastic: Elastic, rates: JobRates, gpus: Counts, comm: Comm = UNLIMITED
    ) -> Fit | None:
        workers, most = elastic.num_workers, elastic.max_gpus
        if elastic.mixes_types:
            return best(rates, workers, gpus, most, comm)
        fits = [best(rates, workers, one, most, comm) for one in _single(gpus)]
        found = [fit for fit in fits if fit is not None]
        return min(found, key=lambda fit: (fit.step_s, fit.num_gpus), default=None)

    def _reachable(self, elastic: Elastic, held: GpuCounts, free: GpuCounts) -> GpuCounts:
        """The free GPUs a job could add to what it holds."""
        if elastic.mixes_types or not any(held.values()):
            return free
        return {t: n for t, n in free.items() if held.get(t)}


def allowed(proposals: Iterable[Proposal], memory: Memory) -> list[Proposal]:
    """Those proposals that do not lead to GPUs which did not help before."""
    return [p for p in proposals if held_of(p.gpus) not in memory.refused]


def _single(gpus: Counts) -> list[Counts]:
    """The GPUs of each type alone."""
    return [tuple(n if j == i else 0 for j in range(len(gpus))) for i, n in enumerate(gpus) if n]


def _counts(rates: JobRates, gpus: GpuCounts) -> Counts:
    return tuple(gpus.get(t, 0) for t in rates.microbatch_s)


def _named(rates: JobRates, counts: Counts) -> dict[str, int]:
    return {t: n for t, n in zip(rates.microbatch_s, counts, strict=True) if n}


def _no_plan(elastic: Elastic, rates: JobRates, gpus: GpuCounts) -> UsageError:
    asked = [t for t, n in gpus.items() if n]
    if not asked:
        return UsageError("no plan: the job is given no GPU")
    near = did_you_mean(asked[0], rates.microbatch_s)
    return UsageError(
        f"no plan for {elastic.num_workers} logical workers of {rates.model} on"
        f" {', '.join(asked)}: the profile has no times there; {near}"
    )
