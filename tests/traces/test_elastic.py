"""Elastic jobs in the canonical table: read, checked, and invisible where there are none."""

from __future__ import annotations

from typing import Any

import pytest

from traces import DataError, Elastic, Workload


def row(**values: Any) -> dict[str, object]:
    return {"job_id": "a", "submit_s": 0.0, "duration_s": 10.0, "num_gpus": 4, **values}


def test_a_row_with_max_gpus_is_elastic() -> None:
    given = row(num_workers=8, min_gpus=2, max_gpus=6, gpu_type="v100|t4", model="m", batch_size=3)
    elastic = Workload.from_jobs([given]).job(0).elastic
    assert elastic == Elastic(
        num_workers=8, min_gpus=2, max_gpus=6, model="m", batch_size=3, preferred_type="v100"
    )
    assert Workload.from_jobs([row(num_workers=8)]).job(0).elastic is None


def test_nothing_is_guaranteed_unless_said() -> None:
    elastic = Workload.from_jobs([row(num_workers=4, max_gpus=4)]).job(0).elastic
    assert elastic is not None
    assert (elastic.min_gpus, elastic.least_gpus, elastic.mixes_types) == (0, 1, False)


@pytest.mark.parametrize(
    ("given", "column", "words"),
    [
        (row(max_gpus=4), "num_workers", "the logical workers"),
        (row(num_workers=4, max_gpus=4, min_gpus=5), "min_gpus", "at most max_gpus"),
        (row(num_workers=4, max_gpus=3), "num_gpus", "to max_gpus"),
        (row(num_workers=8, max_gpus=8, min_gpus=5), "num_gpus", "from min_gpus"),
        (row(num_workers=4, min_gpus=1), "min_gpus", "the job is rigid"),
        (row(mixes_types=True), "mixes_types", "rigid"),
        (row(num_workers=4, max_gpus=0), "max_gpus", "1 or more"),
        (row(num_workers=1, max_gpus=1, num_gpus=1, gpu_milli=500), "gpu_milli", "1000"),
    ],
)
def test_bounds_that_cannot_be_are_refused(
    given: dict[str, object], column: str, words: str
) -> None:
    with pytest.raises(DataError) as raised:
        Workload.from_jobs([given])
    assert column in str(raised.value)
    assert words in str(raised.value)


def test_the_digest_sees_elastic_jobs_and_only_those() -> None:
    rigid = Workload.from_jobs([row(num_workers=4)])
    elastic = Workload.from_jobs([row(num_workers=4, max_gpus=4)])
    more = Workload.from_jobs([row(num_workers=4, max_gpus=4, mixes_types=True)])
    assert len({rigid.digest(), elastic.digest(), more.digest()}) == 3
    # As it was before the columns were there.
    assert rigid.digest().startswith("839cd7de285f")


def test_a_number_is_shown_as_a_number() -> None:
    with pytest.raises(DataError, match=r"\(found 5\)"):
        Workload.from_jobs([row(num_workers=4, max_gpus=4, min_gpus=5)])
