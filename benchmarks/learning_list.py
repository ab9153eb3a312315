"""Which networks are trained on which data for how long: the experiments of ``learning.py``.

An experiment is a value: one network, one seed, and stages of steps, each with its own generator.
A stage of short, fully informative histories comes first: the match between candidate and history
is found there at a fraction of the cost. All samples of all stages are counted.

The order is the order in which they are begun.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from models.config import LongerConfig
from models.data.generator import GeneratorConfig
from models.sparse.optimizer import RowAdam
from models.train.config import TrainConfig, build, count
from models.train.step import DenseOptimizer

NUM_CATEGORIES = 8
BATCH = 256
EVENT = GeneratorConfig(categories=NUM_CATEGORIES, num_cross=0)
"""Sixty-four items of each of eight categories, weights a^(-1/4), tau = 1.5, labels balanced."""

SMALL = LongerConfig(
    d=16,
    merge=4,
    max_length=64,
    queries=6,
    heads=4,
    num_cross=0,
    num_actions=2,
    item_dim=4,
    category_dim=16,
    action_dim=4,
    age_dim=4,
    user_dim=4,
    cross_dim=4,
    head_hidden=(32,),
)
"""LONGER as it is compared: K = 4, InnerTrans, and as in the paper 40 % of the merged tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """``steps`` steps on a generator of its own, seeing the newest ``visible`` (None: all)."""

    steps: int
    data: GeneratorConfig
    visible: int | None = None
    batch: int = BATCH


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How every network is trained: both optimizers, and two widths of the input."""

    lr: float = 3e-3
    table_lr: float = 1e-2
    beta2: float = 0.999
    table_scale: float = 2.0
    action_dim: int = 4
    age_dim: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One run. ``seconds`` ends it early, with its learning rates down to the end of their cosine.

    ``clocked``: it need not be possible to do all steps. ``also_visible``: shorter views on which
    the trained network is evaluated too.
    """

    group: str
    variant: str
    seed: int
    stages: tuple[Stage, ...]
    network: str = "longer"
    model: LongerConfig = SMALL
    recipe: Recipe = Recipe()
    seconds: float = 330.0
    clocked: bool = False
    eval_samples: int = 8192
    also_visible: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Group, variant and seed."""
        return f"{self.group}/{self.variant}/{self.seed}"

    @property
    def config(self) -> TrainConfig:
        """The run's configuration, but for its schedule."""
        return TrainConfig(
            network=self.network,
            model=self.model,
            global_batch=BATCH,
            dense=DenseOptimizer(lr=self.recipe.lr, beta2=self.recipe.beta2),
            sparse=RowAdam(lr=self.recipe.table_lr, beta2=self.recipe.beta2),
            table_scale=self.recipe.table_scale,
        )

    def by(self, recipe: Recipe) -> Experiment:
        """Return the same by another recipe."""
        widths = {"action_dim": recipe.action_dim, "age_dim": recipe.age_dim}
        return replace(self, recipe=recipe, model=replace(self.model, **widths))

    @property
    def samples(self) -> int:
        """Training samples of all stages."""
        return sum(stage.steps * stage.batch for stage in self.stages)

    def shortened(self, share: float) -> Experiment:
        """Return the same with that share of the steps, at least two a stage."""
        stages = tuple(replace(s, steps=max(2, round(s.steps * share))) for s in self.stages)
        return replace(self, stages=stages, eval_samples=max(256, round(self.eval_samples * share)))


@cache
def step_flops(network: str, model: LongerConfig, length: int, batch: int) -> int:
    """Operations of one training step on full histories, as executed."""
    return count(build(TrainConfig(network=network, model=model), 0), [length] * batch)


def flops(experiment: Experiment) -> int:
    """Operations of a whole run."""
    return sum(
        stage.steps
        * step_flops(
            experiment.network,
            experiment.model,
            min(stage.data.length, stage.visible or stage.data.length),
            stage.batch,
        )
        for stage in experiment.stages
    )


def rising(
    lengths_and_steps: tuple[tuple[int, int], ...], data: GeneratorConfig
) -> tuple[Stage, ...]:
    """Stages of (length, steps), each on whole histories of that length."""
    return tuple(
        Stage(
            steps=steps,
            data=replace(data, length=length),
            # 65,536 merge groups and more are too many for one attention call of CUDA.
            batch=BATCH if length < 1024 else BATCH // 2,
        )
        for length, steps in lengths_and_steps
    )


def _near() -> list[Experiment]:
    """How near to the Bayes AUC LONGER comes at 64, 256 and 1,024 events: as long as there is."""
    made = []
    for length, rise, last, seeds in (
        (64, ((16, 250),), 4000, 5),
        (256, ((16, 250), (64, 1500)), 6500, 3),
        (1024, ((16, 250), (64, 300), (256, 1500)), 4000, 2),
    ):
        made += [
            Experiment(
                group=f"near-{length}",
                variant="longer",
                seed=seed,
                model=replace(SMALL, max_length=length, queries=length // 10),
                stages=rising((*rise, (length, last)), EVENT),
                seconds=3600,
                clocked=True,
                eval_samples=4096 if length == 1024 else 8192,
                also_visible=tuple(length >> i for i in range(4, 0, -1)),
            )
            for seed in range(seeds)
        ]
    return sorted(made, key=lambda experiment: experiment.seed)


EQUAL = ((16, 300), (64, 500))
SEEDS = 3
FLOPS_SEEDS = 2
MOST_TIMES = 5
"""A run at equal operations takes at most so many times the steps; the table says where it did."""


def variants() -> dict[str, tuple[str, LongerConfig]]:
    """The rows of the comparison: name to (network, configuration)."""
    concat = replace(SMALL, inner_layers=0)
    eight = replace(SMALL, merge=8, heads=8)
    made = {
        "longer: merge 4, InnerTrans, k=6": ("longer", SMALL),
        "sum-pooling": ("sum-pooling", SMALL),
        "din": ("din", SMALL),
        "twin (26 retrieved)": ("twin", replace(SMALL, queries=26)),
        "hstu": ("hstu", SMALL),
        "transformer (no merge)": ("transformer", SMALL),
        "merge 4, concat, k=16": ("longer", replace(concat, queries=16)),
        "merge 4, InnerTrans, k=16": ("longer", replace(SMALL, queries=16)),
        "merge 8, concat, k=8": ("longer", replace(eight, inner_layers=0, queries=8)),
        "merge 8, InnerTrans, k=8": ("longer", replace(eight, queries=8)),
        "k=3": ("longer", replace(SMALL, queries=3)),
        "k=10": ("longer", replace(SMALL, queries=10)),
    }
    for sampling in ("uniform", "learnable", "recent+uniform"):
        made[f"k=6 {sampling}"] = ("longer", replace(SMALL, sampling=sampling))
    return made


def _compared() -> list[Experiment]:
    """Everything at equal samples; then at equal operations what differs in them."""
    stages = rising(EQUAL, EVENT)
    equal = [
        Experiment(
            group="samples",
            variant=variant,
            seed=seed,
            network=network,
            model=model,
            stages=stages,
            seconds=200,
        )
        for seed in range(SEEDS)
        for variant, (network, model) in variants().items()
    ]
    base = flops(equal[0])
    at_flops = []
    for seed in range(FLOPS_SEEDS):
        for run in equal[: len(variants())]:
            times = base / flops(run)
            if abs(times - 1) < 0.1 or "k=6 " in run.variant:
                continue
            times = min(times, MOST_TIMES)
            longer = tuple(replace(s, steps=round(s.steps * times)) for s in stages)
            at_flops.append(replace(run, group="flops", seed=seed, stages=longer, seconds=240))
    return equal + at_flops


def _visible() -> list[Experiment]:
    """One network for each visible length of histories of 256 events."""
    whole = replace(EVENT, length=256)
    return [
        Experiment(
            group="visible",
            variant=str(seen),
            seed=seed,
            model=replace(SMALL, max_length=256, queries=25),
            stages=(
                *rising(((16, 300),), EVENT),
                Stage(steps=600, data=whole, visible=seen),
            ),
            seconds=200,
        )
        for seed in range(2)
        for seen in (16, 32, 64, 128, 256)
    ]


def _silent() -> list[Experiment]:
    """Who sees only the newest 16 events, which tell nothing."""
    return [
        Experiment(
            group="silent",
            variant="a0=16, visible 16",
            seed=seed,
            stages=(Stage(steps=600, data=replace(EVENT, length=64, silent=16), visible=16),),
            also_visible=(8,),
            seconds=100,
        )
        for seed in range(3)
    ]


def _pairs() -> list[Experiment]:
    """The sign of an event is the XOR of two neighbouring actions."""
    data = replace(EVENT, categories=2, length=16, pairs=True)
    small = replace(SMALL, max_length=16, queries=1)
    concat = replace(small, inner_layers=0)
    rows: dict[str, tuple[str, LongerConfig]] = {
        "longer: merge 4, InnerTrans, k=1": ("longer", small),
        "merge 4, concat, k=1": ("longer", concat),
        "merge 4, concat, k=4": ("longer", replace(concat, queries=4)),
        "sum-pooling": ("sum-pooling", small),
        "din": ("din", small),
        "transformer (no merge)": ("transformer", small),
    }
    return [
        Experiment(
            group="pairs",
            variant=variant,
            seed=seed,
            network=network,
            model=model,
            stages=rising(((16, 800),), data),
            seconds=200,
        )
        for seed in range(3)
        for variant, (network, model) in rows.items()
    ]


def recipes() -> list[Experiment]:
    """LONGER after 600 steps of different recipes: how ``Recipe`` was chosen."""
    old = Recipe(lr=2e-3, table_scale=1.0, age_dim=4)
    tried = {
        "lr 2e-3, table scale 1, age 4": old,
        "lr 4e-3": replace(old, lr=4e-3),
        "lr 3e-3, beta2 .98": replace(old, lr=3e-3, beta2=0.98),
        "table scale 2": replace(old, table_scale=2.0),
        "table scale 3, age 1": replace(old, table_scale=3.0, age_dim=1),
        "table scale 2, age 1, action 8": replace(old, table_scale=2.0, age_dim=1, action_dim=8),
        "table scale 2, age 1, lr 3e-3": replace(old, table_scale=2.0, age_dim=1, lr=3e-3),
        "table scale 2, table lr 3e-2": replace(old, table_scale=2.0, table_lr=3e-2),
    }
    return [
        Experiment(
            group="recipe",
            variant=variant,
            seed=seed,
            stages=rising(((16, 300), (64, 300)), EVENT),
            seconds=120,
            recipe=recipe,
        )
        for seed in (10, 11)
        for variant, recipe in tried.items()
    ]


def experiments() -> list[Experiment]:
    """All of them, the most important first: a seed of everything, then the next."""
    first = _near() + _silent()
    rest = [(_LATER.get(e.group, 0) + e.seed, e) for e in _compared() + _visible() + _pairs()]
    ordered = first + [e for _, e in sorted(rest, key=lambda pair: pair[0])] + recipes()
    return [experiment.by(experiment.recipe) for experiment in ordered]


_LATER = {"flops": 3, "visible": 3, "pairs": 2}
"""How many seeds of the comparison at equal samples come before a group's first."""
