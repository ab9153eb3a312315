"""Gangs made elastic by a rule: what changes, what stays, and that order does not matter."""

from __future__ import annotations

import pytest

from policies.model import Model
from simulator.run import simulate
from traces import Profile, UsageError, Workload
from traces.elastic_rule import ElasticRule, make_elastic
from traces.profile import ModelProfile

PROFILE = Profile(
    models={
        "conv": ModelProfile(microbatch_s={32: {"v100": 1.0, "t4": 3.0}}),
        "text": ModelProfile(microbatch_s={8: {"v100": 2.0, "t4": 2.5}, 16: {"v100": 3.0}}),
    },
    origin="fitted",
)
ROWS = [
    {"job_id": f"job{i}", "submit_s": 10.0 * i, "duration_s": 60.0, "num_gpus": n}
    for i, n in enumerate([1, 2, 4, 3, 0, 2, 4, 1])
]


def made(rule: ElasticRule) -> Workload:
    return make_elastic(Workload.from_jobs(ROWS), rule, PROFILE)


def test_what_a_rule_says() -> None:
    table = made(ElasticRule(max=2.0, min=0.5, mix="text")).table
    assert table["num_workers"].tolist()[:4] == [2, 4, 8, 6]
    assert table["max_gpus"].tolist()[:4] == [2, 4, 8, 6]
    assert table["min_gpus"].tolist()[:4] == [0, 1, 2, 1]
    assert table["max_gpus"].isna().tolist() == [n == 0 for n in table["num_gpus"]]
    gangs = table[table["num_gpus"] > 0]
    assert set(gangs["model"]) == {"conv", "text"}
    assert ((gangs["model"] == "text") == gangs["mixes_types"]).all()
    assert dict(zip(gangs["model"], gangs["batch_size"], strict=True)) == {"conv": 32, "text": 8}
    assert "max=2.0" in made(ElasticRule(max=2.0)).source.notes[-1]


def test_a_gang_takes_what_the_trace_says() -> None:
    rigid = simulate(Workload.from_jobs(ROWS), "4x4:v100", policy="fifo")
    for most in (1.0, 2.0):
        elastic = simulate(
            made(ElasticRule(max=most)), "4x4:v100", policy="fifo", model=Model(profile=PROFILE)
        )
        assert elastic.jobs["jct_s"].tolist() == pytest.approx(rigid.jobs["jct_s"].tolist())


def test_the_order_of_rows_does_not_matter() -> None:
    rule = ElasticRule(mix="all")
    turned = make_elastic(Workload.from_jobs(ROWS[::-1]), rule, PROFILE)
    assert turned.digest() == made(rule).digest()
    fewer = make_elastic(Workload.from_jobs(ROWS[:3]), rule, PROFILE)
    assert fewer.table["model"].tolist() == made(rule).table["model"].tolist()[:3]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max": 0.5}, "max"),
        ({"min": 2.0}, "min"),
        ({"models": "txt"}, "text"),
        ({"mix": "conf"}, "conv"),
        ({"models": ";"}, "empty"),
    ],
)
def test_what_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        made(ElasticRule(**values))  # type: ignore[arg-type]
