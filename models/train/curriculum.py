"""How much of a history is seen at which step: short ones first.

A network must find which events belong to a candidate before it can learn what they tell, and steps
on fewer events are cheaper ones to search by. So early steps may show the newest few events only.
The samples, their labels and their order are those of a run without a curriculum; the data side
cuts (``visible`` of ``models.data.collate.Samples``). What is cut off is noise to whoever does not
see it, so a view must not be too short (``docs/models/learnability.md``). The paper names no
curriculum.

Leaves out: stages that end when the loss says so; a step's view is a function of the step alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from models.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Curriculum:
    """``stages``: (first step, newest events seen; None: all), first steps rising from 0.

    Raises ModelError for other stages.
    """

    stages: tuple[tuple[int, int | None], ...] = ((0, None),)

    def __post_init__(self) -> None:
        steps = [first for first, _ in self.stages]
        if not steps or steps[0] != 0 or any(b <= a for a, b in pairwise(steps)):
            raise ModelError(
                "stages in no order", where="stages", value=steps, expected="rising from step 0"
            )
        for first, visible in self.stages:
            if visible is not None and visible < 0:
                raise ModelError(
                    "no such view",
                    where=f"stage from step {first}",
                    value=visible,
                    expected="0 or more events, or None",
                )

    def visible(self, step: int) -> int | None:
        """Return how many of the newest events step 0, 1, ... sees; None: all."""
        return [seen for first, seen in self.stages if first <= step][-1]


def parse_curriculum(text: str) -> Curriculum:
    """Read ``FIRST_STEP:EVENTS,...,FIRST_STEP:all``, as in ``0:16,300:64,900:all``.

    Raises ModelError for anything else.
    """
    stages = []
    for part in text.split(","):
        first, colon, seen = part.strip().partition(":")
        if not colon or not first.isdecimal() or not (seen == "all" or seen.isdecimal()):
            raise ModelError(
                "no stage of a curriculum", value=part, expected="STEP:EVENTS or STEP:all"
            )
        stages.append((int(first), None if seen == "all" else int(seen)))
    return Curriculum(stages=tuple(stages))
