"""``tandem profile``: measure a machine's lanes, and say how well the rate model predicts them.

For every lane type a process of its own measures each model's micro-batch, update and switch
(``executor.measure``); real jobs of the engine measure whole steps on worker maps, and start,
rescale and checkpoint (``executor.trials``). What is left of a step when micro-batches, switches
and the update are taken away is the reduction, on one device too (there it is the engine's own
work). Its cost over K devices is a line through two sizes of gradient. The rows of sparse tables
are exchanged too, and sorted and merged; a model that has some is given, in place of the bytes of
its dense gradient, as many as would take as long.

On CPU lanes what a process measures alone is processor time (``executor.measure``). A job waits for
more, and its neighbours on the other lanes take their share of memory and caches: its micro-batches
are taken to be longer by as much as one more logical worker adds to a job's step, by the clock and
with such a job on every lane, than it should. Steps of several devices can only be timed by the
clock, too, so on a busy machine all of this is too long. The profile notes how much of their cores
the measuring processes had.

At last the finished profile predicts the steps of *held-out* worker maps, which were not used for
it: uneven ones, and mixed types where the level admits them. Their relative errors are in the file.

All of it takes turns, in short rounds, so that a machine that is busy for a while is busy for all;
and what is reported is the median, because a run will meet the machine as it is. The whole is at
one determinism level, since a level may choose other kernels: at D1 every type for itself, at D2
with the kernels that all lanes have in common. Intervals are 95 % bootstrap percentiles (Efron
1979) of the median, 1,000 draws.

A profile has one cost of reduction, measured on the lanes of which one job may have most.

Leaves out: lanes that share a core (they are measured alone, and not used at once), links between
machines, that another type of lane may reduce faster or slower, and that a job whose neighbours
stand idle is a little faster.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from executor.alone import Alone
from executor.deriving import (
    REDUCED,
    SINGLE,
    Case,
    Group,
    dilation,
    even_maps,
    reduced_bytes,
    reduction,
    single_maps,
    switch_s,
    update_s,
    usual,
    usual_interval,
    widest,
    widest_maps,
)
from executor.devices import DeviceLane
from executor.fingerprint import fingerprint
from executor.levels import Level, agree, together, usual_level
from executor.machine import Machine
from executor.pool import Place
from executor.presets import model_task
from executor.trials import Costs, Trials, apart
from policies.rates import step_time_of
from traces.errors import UsageError
from traces.profile import ModelProfile, PredictionError, Profile, ReduceCost
from traces.workermap import WorkerMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure: rounds; in each, seconds a case and steps a worker map."""

    rounds: int = 12
    seconds: float = 0.5
    steps: int = 16


QUICK = Effort(rounds=4, seconds=0.2, steps=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A worker map that was predicted: measured and predicted seconds of a step."""

    model: str
    batch: int
    layout: tuple[tuple[str, int], ...]
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted_s / self.measured_s - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """The profile, and the held-out maps behind its prediction error."""

    profile: Profile
    held_out: tuple[HeldOut, ...]
    level: Level


def profile(
    models: Sequence[str],
    batches: Sequence[int],
    lanes: Sequence[DeviceLane],
    machine: Machine,
    *,
    level: Level | None = None,
    effort: Effort | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Profiled:
    """Measure models at batch sizes (per logical worker) on lanes; takes minutes, quick less.

    ``level`` None: :func:`~executor.levels.usual_level`. Raises UsageError for models that are not
    known and for a level that the lanes do not have, DataError if a process fails.
    """
    effort = Effort() if effort is None else effort
    if not models or not batches or not lanes:
        raise UsageError("a profile needs at least one model, one batch size and one lane")
    for model in models:
        model_task(model, min(batches), 1)
    if level is None:
        level = usual_level(lanes)
    began = time.monotonic()
    cases = [(model, batch) for model in models for batch in sorted(set(batches))]
    groups = [Group(some, agree(level, some)) for some in together(level, lanes)]
    reducing = widest(groups)
    costs: dict[str, Costs] = {}
    with ExitStack() as stack:
        trials = [stack.enter_context(Trials(g.lanes, g.agreement)) for g in groups]
        alone = [
            (group, stack.enter_context(Alone(lane, group.agreement, asked, effort.seconds)))
            for group in groups
            for lane, asked in _asked(group, cases, reducing=group is reducing)
        ]
        for number in range(effort.rounds):
            say(f"round {number + 1} of {effort.rounds}")
            for group, process in alone:
                group.add(process.lane.gpu_type, process.round())
            for group, trial in zip(groups, trials, strict=True):
                _steps(group, trial, cases, group is reducing, effort)
        for model in models:
            say(f"start, rescale and checkpoint of {model}")
            costs[model] = _costs(groups, trials, model, min(batches), effort)
    profile = _assembled(groups, cases, costs, machine, level, time.monotonic() - began)
    held = tuple(_predicted(profile, one) for group in groups for one in _held_out(group, cases))
    return Profiled(profile=_with_error(profile, held), held_out=held, level=level)


def _asked(
    group: Group, cases: Sequence[Case], *, reducing: bool
) -> list[tuple[DeviceLane, Sequence[Case]]]:
    """One lane of each type with what it is to measure; of one group, the reduction's too."""
    by_type = {lane.gpu_type: lane for lane in reversed(group.lanes)}
    lanes = list(dict.fromkeys(by_type[lane.gpu_type] for lane in group.lanes))
    extra = [(model, 1) for model in REDUCED] if reducing else []
    return [(lane, [*cases, *(extra if lane is lanes[0] else [])]) for lane in lanes]


def _steps(
    group: Group, trials: Trials, cases: Sequence[Case], reducing: bool, effort: Effort
) -> None:
    """A round of steps on every worker map: the reduction's, and those that are held out."""
    smallest = _smallest(cases)
    for case in smallest:
        for workers in SINGLE:
            _single(group, trials, case, workers, effort)
    asked = [(case, one) for case in smallest for one in _held_out_maps(group) if len(one.gpus) > 1]
    if reducing:
        asked += [((model, 1), one) for model in REDUCED for one in even_maps(group.lanes)]
        alone = group.alone[group.lanes[0].gpu_type]
        tables = [case for case in smallest if alone[case].has_tables]
        asked += [(case, one) for case in tables for one in widest_maps(group.lanes)]
    for case, one in asked:
        times = trials.step_s(*case, one, steps=effort.steps)
        group.steps.setdefault((case, one), []).extend(times)


def _single(group: Group, trials: Trials, case: Case, workers: int, effort: Effort) -> None:
    """Steps of so many logical workers on one lane: a job on every lane at once, as in a run."""
    places = apart(group.lanes)
    maps = [WorkerMap.of([place], [workers]) for place in places]
    of_type = single_maps(group, workers)
    for place, times in zip(places, trials.at_once(*case, maps, steps=effort.steps), strict=True):
        one = of_type[group.lanes[place[1]].gpu_type]
        group.steps.setdefault((case, one), []).extend(times)


def _smallest(cases: Sequence[Case]) -> list[Case]:
    """Every model at its smallest batch size."""
    return list({model: (model, batch) for model, batch in reversed(cases)}.values())[::-1]


def _costs(
    groups: Sequence[Group], trials: Sequence[Trials], model: str, batch: int, effort: Effort
) -> Costs:
    """Costs of a model, on the first group of lanes that has two to move between."""
    several = [i for i, group in enumerate(groups) if len(apart(group.lanes)) > 1]
    number = several[0] if several else 0
    places = apart(groups[number].lanes)
    maps = [WorkerMap.of(places[:1], [2])]
    if several:
        maps.append(WorkerMap.of(places[:2], [1, 1]))
    repeats = max(2, effort.rounds // 2)
    return trials[number].costs(model, batch, maps, repeats=repeats)


def _held_out_maps(group: Group) -> list[WorkerMap]:
    return held_out_maps(apart(group.lanes), [lane.gpu_type for lane in group.lanes])


def held_out_maps(places: Sequence[Place], types: Sequence[str]) -> list[WorkerMap]:
    """Return maps that are used for nothing but to check predictions.

    Two logical workers on one device of each type; four unevenly over two of each pair of types,
    the more on either, and over three.
    """
    firsts = {types[place[1]]: place for place in reversed(places)}
    maps = [WorkerMap.of([firsts[kind]], [2]) for kind in dict.fromkeys(types) if kind in firsts]
    pairs: dict[frozenset[str], tuple[Place, Place]] = {}
    for i, first in enumerate(places):
        for second in places[i + 1 :]:
            pairs.setdefault(frozenset((types[first[1]], types[second[1]])), (first, second))
    for pair in pairs.values():
        maps += [WorkerMap.of(pair, [3, 1]), WorkerMap.of(pair, [1, 3])]
    if len(places) > 2:
        maps.append(WorkerMap.of(places[:3], [2, 1, 1]))
    return maps


def _held_out(group: Group, cases: Sequence[Case]) -> list[HeldOut]:
    types = [lane.gpu_type for lane in group.lanes]
    return [
        HeldOut(
            model=case[0],
            batch=case[1],
            layout=tuple((types[gpu[1]], n) for gpu, n in zip(one.gpus, one.counts, strict=True)),
            measured_s=usual(group.steps[case, one]),
            predicted_s=0.0,
        )
        for case in _smallest(cases)
        for one in _held_out_maps(group)
    ]


def _predicted(profile: Profile, one: HeldOut) -> HeldOut:
    rates = profile.rates(one.model, one.batch, sum(workers for _, workers in one.layout))
    return replace(one, predicted_s=step_time_of(rates, one.layout).total_s)


def _with_error(profile: Profile, held: Sequence[HeldOut]) -> Profile:
    errors = [abs(one.error) for one in held]
    found = PredictionError(
        cases=len(errors), mean_share=statistics.fmean(errors), max_share=max(errors)
    )
    return replace(profile, prediction_error=found)


def _assembled(
    groups: Sequence[Group],
    cases: Sequence[Case],
    costs: Mapping[str, Costs],
    machine: Machine,
    level: Level,
    seconds: float,
) -> Profile:
    types = [gpu_type for group in groups for gpu_type in group.alone]
    shares = [s.share for group in groups for alone in group.alone.values() for s in alone.values()]
    reduce = reduction(widest(groups))
    size = {case[0]: reduced_bytes(widest(groups), case, reduce) for case in _smallest(cases)}
    models = {
        case[0]: _model(case, groups, costs[case[0]], size[case[0]], reduce)
        for case in _smallest(cases)
    }
    return Profile(
        models=models,
        origin="measured",
        reduce=reduce,
        machine=fingerprint(machine),
        source=f"tandem profile on lanes of {', '.join(types)}",
        notes=(
            f"measured at level {level.value} in {seconds:.0f} s",
            "times are medians; start_s is that of warm workers;"
            " rescale_s is the pause between two steps",
            f"the measuring processes had {min(shares):.0%} of their cores at worst",
            "row_bytes of a model with sparse tables are as many as would take as long as its rows",
        ),
    )


def _model(
    case: Case,
    groups: Sequence[Group],
    costs: Costs,
    size: tuple[float, float],
    reduce: ReduceCost,
) -> ModelProfile:
    """One model's row."""
    model = case[0]
    micro: dict[int, dict[str, float]] = {}
    interval: dict[int, dict[str, tuple[float, float]]] = {}
    memory: dict[int, dict[str, float]] = {}
    switch: dict[str, float] = {}
    update: dict[str, float] = {}
    of_types = [(group, *pair) for group in groups for pair in group.alone.items()]
    for group, gpu_type, alone in of_types:
        longer = dilation(group, case, gpu_type)
        for (name, batch), samples in alone.items():
            if name != model:
                continue
            low, high = usual_interval(samples.micro_s)
            micro.setdefault(batch, {})[gpu_type] = usual(samples.micro_s) * longer
            interval.setdefault(batch, {})[gpu_type] = (low * longer, high * longer)
            memory.setdefault(batch, {})[gpu_type] = float(samples.memory_mib)
            switch.setdefault(gpu_type, switch_s(samples))
            if (name, batch) == case:
                update[gpu_type] = update_s(group, case, gpu_type, reduce)
    return ModelProfile(
        microbatch_s=micro,
        interval_s=interval,
        memory_mib=memory,
        switch_s=switch,
        update_s=update,
        gradient_bytes=size[0],
        row_bytes=size[1],
        start_s=costs.start_s,
        rescale_s=costs.rescale_s if costs.rescales else None,
        checkpoint_s=costs.checkpoint_s,
    )


def as_json(profiled: Profiled) -> dict[str, Any]:
    """Return the held-out maps and their errors as JSON values."""
    return {
        "level": profiled.level.value,
        "held_out": [
            {
                "model": one.model,
                "batch": one.batch,
                "layout": [list(part) for part in one.layout],
                "measured_s": one.measured_s,
                "predicted_s": one.predicted_s,
            }
            for one in profiled.held_out
        ],
    }
