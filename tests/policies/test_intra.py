"""Intra-job planning by hand: Equation 1, worker maps, proposals, learning, fallback, errors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

import tandem
from policies.contract import Proposal
from policies.intra.balance import best, spread
from policies.intra.companion import Companion, allowed
from policies.intra.even import Even
from policies.intra.learning import (
    Memory,
    changed,
    judge,
    learned,
    learned_profile,
    observe,
    observe_devices,
)
from policies.intra.worth import Worth, equation_1
from policies.rates import rates_of, step_time_of
from policies.registry import make_intra
from traces import DataError, Elastic, Profile, UsageError, load_profile
from traces.profile import JobRates, ModelProfile, ReduceCost
from traces.workermap import Gpu

# One logical worker: 1 s on V100, 2 s on P100, 4 s on T4.
PROFILE = Profile(
    models={"m": ModelProfile(microbatch_s={8: {"v100": 1.0, "p100": 2.0, "t4": 4.0}})},
    origin="analytic",
)
JOB = Elastic(num_workers=8, max_gpus=8, mixes_types=True, model="m", batch_size=8)
COMPANION = Companion()


def gpus(**counts: int) -> list[Gpu]:
    """``gpus(v100=2, t4=1)``: one node for each type."""
    return [Gpu(node, i, t) for node, (t, n) in enumerate(counts.items()) for i in range(n)]


@pytest.mark.parametrize(
    ("n", "slots", "worth"),
    [
        # Two V100 with 4 each: f = 4 s, nothing idle: 2 a second.
        ((2, 0), (4, 0), Worth(8, 4.0, 0.0, 0.0, 2.0)),
        # Three with 3 each: one place too many. f = 3 s, waste 1/3 of 3 a second.
        ((3, 0), (3, 0), Worth(9, 3.0, 1 / 3, 1 / 9, 8 / 3)),
        # One V100 with 6, one P100 with 2: f = 6 s; the P100 has 2/6 of 1/2 a second: waste 1/6.
        ((1, 1), (6, 2), Worth(8, 6.0, 1 / 6, 1 / 9, 8 / 6)),
        # 5 and 3: f = 6 s by the P100, the V100 idles for one in six.
        ((1, 1), (5, 3), Worth(8, 6.0, 1 / 6, 1 / 9, 8 / 6)),
        # 6 and 3: nothing idles but one place is too many.
        ((1, 1), (6, 3), Worth(9, 6.0, 1 / 6, 1 / 9, 8 / 6)),
    ],
)
def test_equation_1(n: tuple[int, int], slots: tuple[int, int], worth: Worth) -> None:
    found = equation_1((1.0, 2.0), n, slots, 8)
    assert found == pytest.approx(worth)
    speed = n[0] / 1.0 + n[1] / 2.0
    assert found.throughput == pytest.approx(speed - found.waste)  # (e)
    assert found.throughput == pytest.approx(8 / found.overload_s)


def test_equation_1_refuses_a_plan_that_does_not_hold_the_job() -> None:
    with pytest.raises(UsageError, match="8 logical workers holds 7"):
        equation_1((1.0,), (1,), (7,), 8)


def test_a_plan_by_hand() -> None:
    # V100 and P100 together do 1.5 a second; within 5 s they hold 5 and 2, within 6 s 6 and 3.
    plan = COMPANION.plan(JOB, {"v100": 1, "p100": 1}, PROFILE)
    assert (plan.step_s, dict(plan.workers)) == (6.0, {"v100": (6,), "p100": (2,)})
    assert plan.worth.overload_s == 6.0
    # Eight V100 do it in 1 s; the T4 would take 4 s for one: it is handed back.
    plan = COMPANION.plan(JOB, {"v100": 8, "t4": 1}, PROFILE)
    assert (plan.step_s, dict(plan.gpus), dict(plan.released)) == (1.0, {"v100": 8}, {"t4": 1})
    # Five V100 take 2 s with 4 of them as well.
    plan = COMPANION.plan(JOB, {"v100": 5}, PROFILE)
    assert (plan.step_s, dict(plan.gpus), dict(plan.released)) == (2.0, {"v100": 4}, {"v100": 1})


def test_fewer_or_slower_gpus_if_they_are_as_fast() -> None:
    rates = JobRates.plain({"v100": 1.0, "p100": 2.0})
    # Two V100 and a P100 hold 3 + 3 + 1 in 3 s; six workers need no P100.
    fit = best(rates, 6, (2, 1), 8)
    assert fit is not None
    assert (fit.gpus, fit.compute_s) == ((2, 0), 3.0)
    # Nine in 4 s: 4 + 4 on two V100 and one more, for which a P100 will do.
    fit = best(rates, 9, (3, 1), 3)
    assert fit is not None
    assert (fit.gpus, fit.compute_s) == ((3, 0), 3.0)
    fit = best(rates, 10, (3, 1), 3)
    assert fit is not None
    assert (fit.gpus, fit.compute_s) == ((2, 1), 4.0)
    fit = best(rates, 6, (1, 9), 2)
    assert fit is not None
    assert (fit.gpus, fit.compute_s) == ((1, 1), 4.0)
    assert spread(rates, 6, (1, 1)) == ((4,), (2,))


def test_communication_can_make_fewer_gpus_faster() -> None:
    model = ModelProfile(microbatch_s={8: {"v100": 1.0}}, gradient_bytes=4e9)
    slow = Profile(models={"m": model}, origin="analytic", reduce=ReduceCost(bytes_per_s=1e9))
    # 8 GPUs: 1 + 7 s; 4: 2 + 6 s; 2: 4 + 4 s; 1: 8 s. All alike: one GPU, the rest is released.
    plan = COMPANION.plan(JOB, {"v100": 8}, slow)
    assert (plan.step_s, dict(plan.gpus), dict(plan.released)) == (8.0, {"v100": 1}, {"v100": 7})
    fast = Profile(models={"m": model}, origin="analytic", reduce=ReduceCost(bytes_per_s=4e9))
    # 8: 1 + 1.75 s; 4: 2 + 1.5 s.
    assert COMPANION.plan(JOB, {"v100": 8}, fast).step_s == pytest.approx(2.75)


def test_a_map_fills_the_nodes_where_the_job_is() -> None:
    held = [Gpu(0, 0, "v100"), Gpu(1, 0, "v100"), Gpu(1, 1, "v100"), Gpu(2, 0, "t4")]
    # Within 4 s the V100 hold 4 each: two are enough, and those of one node are kept.
    workers = COMPANION.assign(replace(JOB, max_gpus=2), held, PROFILE)
    assert (workers.gpus, workers.counts) == (((1, 0), (1, 1)), (4, 4))
    # Most first, so that blocks of ranks begin at multiples of their length where they can.
    workers = COMPANION.assign(JOB, gpus(t4=1, v100=1), PROFILE)
    assert (workers.gpus, workers.counts) == (((1, 0), (0, 0)), (7, 1))


def test_a_job_that_may_not_mix_sits_on_one_type() -> None:
    pure = replace(JOB, mixes_types=False)
    workers = COMPANION.assign(pure, gpus(v100=1, p100=4), PROFILE)
    assert set(workers.gpus) == {(1, 0), (1, 1), (1, 2), (1, 3)}  # 4 s, not 8
    free = {"v100": 4, "t4": 4}
    grown = COMPANION.proposals(pure, {"v100": 1}, free, PROFILE)
    assert {p.gpu_type for p in grown} == {"v100"}
    begun = COMPANION.proposals(pure, {}, free, PROFILE)
    assert {p.gpu_type for p in begun} == {"v100", "t4"}


def test_proposals_by_hand() -> None:
    first, second = COMPANION.proposals(JOB, {"v100": 1}, {"v100": 3, "t4": 2}, PROFILE)
    # One V100 takes 8 s. One more: 4 s, gain 1; three more: 2 s, gain 3 / 3 = 1: the larger first.
    assert (first.gpu_type, first.more, first.speedup, first.gain) == ("v100", 3, 4.0, 1.0)
    assert (dict(first.gpus), dict(first.released), first.step_s) == ({"v100": 4}, {}, 2.0)
    # A T4 with one worker: 7 s, 8 / 7. Two: 6 and 1 and 1: 6 s, 8 / 6, gain 1/6 a GPU.
    assert (second.gpu_type, second.more) == ("t4", 2)
    assert second.speedup == pytest.approx(8 / 6)
    assert second.gain == pytest.approx(1 / 6)
    # 6 s x (1 + 2 x 1/4) a second hold 9 micro-batches; 8 are done.
    assert second.waste_share == pytest.approx(1 / 9)
    every = Companion(top=0).proposals(JOB, {"v100": 1}, {"v100": 3}, PROFILE)
    assert [(p.more, p.gain) for p in every] == [(3, 1.0), (1, 1.0), (2, pytest.approx(5 / 6))]
    strict = Companion(top=0, max_waste=0.1)
    # Three V100 hold 9 in 3 s: 1/9 idle is too much.
    assert [p.more for p in strict.proposals(JOB, {"v100": 1}, {"v100": 3}, PROFILE)] == [3, 1]
    assert COMPANION.proposals(JOB, {"v100": 8}, {"v100": 8, "t4": 8}, PROFILE) == []


def test_a_job_that_holds_nothing_asks_by_its_rate() -> None:
    job = replace(JOB, preferred_type="v100")
    found = Companion(top=0).proposals(job, {}, {"v100": 2, "t4": 1}, PROFILE)
    # The reference is 1 s. Two V100: 4 s, rate 1/4, 1/8 a GPU; one: 8 s; the T4: 32 s.
    assert [(p.gpu_type, p.more, p.speedup, p.gain) for p in found] == [
        ("v100", 2, 0.25, 0.125),
        ("v100", 1, 0.125, 0.125),
        ("t4", 1, 1 / 32, 1 / 32),
    ]
    guaranteed = replace(job, min_gpus=2)
    assert [p.more for p in COMPANION.proposals(guaranteed, {}, {"v100": 1}, PROFILE)] == []


def test_growing_can_hand_slow_gpus_back() -> None:
    (more,) = COMPANION.proposals(JOB, {"v100": 7, "t4": 1}, {"v100": 1}, PROFILE)
    assert (dict(more.gpus), dict(more.released)) == ({"v100": 8}, {"t4": 1})
    assert more.speedup == 2.0  # 2 s with seven V100; the T4 alone would take 4 s for one


def test_what_fewer_would_cost() -> None:
    found = COMPANION.releases(JOB, {"v100": 5, "t4": 1}, PROFILE)
    # Five V100 are as fast as four, and the T4 is idle: both for nothing.
    assert (found[0].lost, found[1].lost) == (0.0, 0.0)
    assert {(r.gpu_type, r.fewer) for r in found[:2]} == {("v100", 1), ("t4", 1)}
    costs = {(r.gpu_type, r.fewer): r.lost for r in found}
    assert costs["v100", 2] == pytest.approx(1 - 2 / 3)  # three take 3 s
    assert costs["v100", 3] == pytest.approx(1 - 2 / 4)
    least = COMPANION.releases(replace(JOB, min_gpus=5), {"v100": 5, "t4": 1}, PROFILE)
    assert {(r.gpu_type, r.fewer) for r in least} == {("v100", 1), ("t4", 1)}


def test_learning_finds_the_type_that_is_slow() -> None:
    rates = rates_of(PROFILE, JOB)
    layout = (("v100", 6), ("p100", 2))
    truth = rates.scaled({"p100": 2.0})
    seen = step_time_of(truth, layout).total_s  # 8 s by the P100, where 6 s by the V100 were due
    memory = Memory()
    for _ in range(12):
        memory = observe(memory, rates, layout, seen)
    # All that is known is that the slowest takes 8 s: the one thought slowest is blamed.
    assert step_time_of(learned(rates, memory), layout).total_s == pytest.approx(8.0, rel=1e-2)
    # Reports by device blame the right one.
    told = observe_devices(Memory(), rates, [("v100", 6, 6.0), ("p100", 2, 8.0)], weight=1.0)
    assert dict(told.factors) == pytest.approx({"v100": 1.0, "p100": 2.0})
    assert dict(learned(rates, told).microbatch_s) == pytest.approx(dict(truth.microbatch_s))
    better = learned_profile(PROFILE, "m", told)
    assert COMPANION.plan(JOB, {"v100": 1, "p100": 1}, better).workers["v100"] == (7,)
    assert learned(rates, Memory()) is rates
    assert learned_profile(PROFILE, "m", Memory()) is PROFILE


def test_a_step_faster_than_believed_teaches_every_type_that_is_too_slow() -> None:
    rates = rates_of(PROFILE, JOB)
    memory = observe(Memory(), rates, (("v100", 6), ("p100", 2)), 3.0, weight=1.0)
    # 6 s and 4 s were believed; the step took 3 s, so neither can take longer.
    assert dict(memory.factors) == pytest.approx({"v100": 0.5, "p100": 0.75})
    once = Companion(weight=0.5).observe(Memory(), JOB, (("v100", 8),), 4.0, PROFILE)
    assert dict(once.factors) == pytest.approx({"v100": 0.5})
    # The same map again, 16 s this time: half way between, of the logarithm.
    twice = Companion(weight=0.5).observe(once, JOB, (("v100", 8),), 16.0, PROFILE)
    assert dict(twice.factors) == pytest.approx({"v100": 1.0})
    assert (twice.observations, len(twice.steps)) == (2, 1)


def test_two_maps_tell_apart_what_one_cannot() -> None:
    rates = rates_of(PROFILE, JOB)
    truth = rates.scaled({"p100": 2.0})  # 4 s, where 2 s are believed
    first = (("v100", 6), ("p100", 2))
    memory = observe(Memory(), rates, first, step_time_of(truth, first).total_s)
    # 8 s: the V100 would have to take 4/3 of what is believed, the P100 twice: the V100 is blamed.
    assert dict(memory.factors) == pytest.approx({"v100": 8 / 6, "p100": 1.0})
    second = (("v100", 5), ("p100", 3))
    memory = observe(memory, rates, second, step_time_of(truth, second).total_s)
    # 12 s: no V100 that takes 8 s for six can have taken that for five. So it is the P100.
    assert dict(memory.factors) == pytest.approx({"v100": 1.0, "p100": 2.0})
    better = learned_profile(PROFILE, "m", memory)
    assert COMPANION.plan(JOB, {"v100": 1, "p100": 1}, better).workers["v100"] == (7,)


def test_a_change_that_does_not_help_is_undone() -> None:
    memory = changed(Memory(), {"v100": 2, "p100": 0}, 4.0, {"v100": 2, "p100": 2})
    verdict = judge(memory, 4.1)
    assert verdict is not None
    assert not verdict.helped
    assert (verdict.back_to, verdict.release) == ((("v100", 2),), (("p100", 2),))
    assert verdict.memory.trial is None
    # The same GPUs are not proposed again; others are.
    again = Proposal(
        gpu_type="p100",
        more=2,
        speedup=1.1,
        gain=0.05,
        step_s=3.6,
        gpus={"v100": 2, "p100": 2},
        released={},
        waste_share=0.0,
    )
    other = replace(again, more=1, gpus={"v100": 2, "p100": 1})
    assert allowed([again, other], verdict.memory) == [other]
    helped = judge(memory, 3.0)
    assert helped is not None
    assert helped.helped
    assert (helped.release, helped.memory.refused) == ((), ())
    picky = Companion(least_gain=0.3).judge(memory, 3.0)  # 25 % is not 30 %
    assert picky is not None
    assert not picky.helped
    assert judge(Memory(), 3.0) is None
    assert verdict.memory.refused == ((("p100", 2), ("v100", 2)),)
    # Giving GPUs up is never undone, however slow it made the job.
    shrunk = judge(changed(Memory(), {"v100": 4}, 2.0, {"v100": 2}), 4.0)
    assert shrunk is not None
    assert shrunk.helped


def test_even_divides_and_knows_no_types() -> None:
    workers = Even().assign(JOB, gpus(v100=2, t4=1), PROFILE)
    assert workers.counts == (3, 3, 2)
    assert Even().proposals(JOB, {"v100": 1}, {"v100": 1}, PROFILE) == ()
    # What it costs: 8 s by the T4, where 4 s by 4 + 4 are possible.
    assert step_time_of(rates_of(PROFILE, JOB), (("v100", 3), ("v100", 3), ("t4", 2))).total_s == 8
    assert COMPANION.plan(JOB, {"v100": 2, "t4": 1}, PROFILE).step_s == 4.0


def test_mixing_types_pays_on_the_fitted_profile(shared_data: Path) -> None:
    profile = load_profile(shared_data / "easyscale" / "profile_fitted.json")
    job = replace(JOB, num_workers=16, max_gpus=16, model="bert", batch_size=16)
    plan = COMPANION.plan(job, {"v100": 4, "p100": 4, "t4": 4}, profile)
    # .804, .989 and 1.037 s: two on each V100 and one on each other; the T4 save a fifth.
    assert dict(plan.workers) == {"v100": (2,) * 4, "p100": (1,) * 4, "t4": (1,) * 4}
    assert plan.step_s == pytest.approx(2 * 0.80395)
    without = COMPANION.plan(job, {"v100": 4, "p100": 4}, profile)
    assert without.step_s == pytest.approx(2 * 0.988584)
    assert without.worth.waste_share < plan.worth.waste_share < 0.30


@pytest.mark.parametrize(
    ("given", "words"),
    [({}, "given no GPU"), ({"v100": 0}, "given no GPU"), ({"p10": 2}, "did you mean 'p100'")],
)
def test_no_plan_says_why(given: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        COMPANION.plan(JOB, given, PROFILE)
    with pytest.raises(UsageError, match=words):
        COMPANION.assign(JOB, gpus(**given), PROFILE)


def test_what_cannot_be_is_refused() -> None:
    for text in ("max_waste=2", "weight=0", "top=-1", "least_gain=-0.1"):
        with pytest.raises(UsageError, match=text.partition("=")[0]):
            make_intra(f"companion:{text}")
    with pytest.raises(UsageError, match="did you mean 'companion'"):
        make_intra("compagnon")
    with pytest.raises(UsageError, match="given no GPU"):
        Even().assign(JOB, [], PROFILE)
    rates = rates_of(PROFILE, JOB)
    for seconds in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(DataError, match="observed time"):
            observe(Memory(), rates, (("v100", 8),), seconds)
        with pytest.raises(DataError, match="observed time"):
            observe_devices(Memory(), rates, [("v100", 1, seconds)])
    with pytest.raises(DataError, match="weight"):
        observe(Memory(), rates, (("v100", 8),), 1.0, weight=0.0)
    with pytest.raises(UsageError, match="cannot sit on"):
        spread(rates, 2, (3, 0, 0))


def test_the_command_line_knows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem.main(["policies"]) == 0
    listed = capsys.readouterr().out
    assert "intra:" in listed
    assert "max_waste=0.3" in listed
    assert tandem.main(["policies", "companion:top=3"]) == 0
    assert "3 for each type" in capsys.readouterr().out
    assert tandem.main(["policies", "check", "even"]) == 0
    assert "ok  ranks" in capsys.readouterr().out
    assert tandem.main(["policies", "companion:weight=0"]) == 2
