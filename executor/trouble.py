"""What goes wrong with a job: whether it is broken, who is at fault, and when to give up.

A break is the end of a generation, not of the job. Workers that are at fault are blamed, and ended
when the others have said what they hold. Errors are counted by kind and step: a step at which there
are too many cannot be done, and the job fails. An error of the task is soon given up (a second try
is for a device at fault); a device that dies is no error of the job, so that takes many. An error
that all devices report alike counts once.

Leaves out: how a job recovers (``executor.scripts``), and who hangs (``executor.crew``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Generic

from executor.messages import Broke
from executor.shards import Device

_MOST_DEATHS = 12  # at one step, each reported by every device
_MOST_ERRORS = 2


class Trouble(Generic[Device]):
    """The trouble of one job.

    ``broken``: the generation is. ``failure``: why the job cannot go on. ``blamed``: devices to be
    ended, and why. ``distrust``: the step at which an audit found replicas that differ and could
    not say which is right.
    """

    def __init__(self) -> None:
        self.broken = False
        self.failure: str | None = None
        self.blamed: dict[Device, str] = {}
        self.distrust: int | None = None
        self._errors: Counter[tuple[str, int]] = Counter()

    def broke(self, device: Device, news: Broke, devices: Mapping[int, Device]) -> None:
        """``device`` could not do a step. ``devices``: those of the generation that live."""
        if news.kind == "lost":
            self._count("lost", news.step, _MOST_DEATHS * max(len(devices), 1), news.text)
        elif device == _first_to_say(news, devices):
            self._count(news.kind, news.step, _MOST_ERRORS, news.text)
        if news.kind == "garbage" and not news.culprits:
            self.distrust = news.step
        if news.kind in {"garbage", "failed"} and not news.refused:
            culprits = [devices[index] for index in news.culprits if index in devices]
            self.blamed |= dict.fromkeys(culprits, news.text)

    def refused(self, step: int, text: str) -> None:
        """A worker could not do what it was asked for between two steps."""
        self._count("request", step, _MOST_ERRORS, text)

    def mended(self) -> None:
        """A new generation has begun, of devices that may be trusted."""
        self.broken, self.distrust = False, None

    def _count(self, kind: str, step: int, most: int, text: str) -> None:
        self._errors[kind, step] += 1
        if self._errors[kind, step] >= most:
            self.failure = text


def _first_to_say(news: Broke, devices: Mapping[int, Device]) -> Device | None:
    """Who counts for an error that all devices report alike: the first that lives."""
    if news.kind == "failed" and not news.refused:
        return next((devices[index] for index in devices if index in news.culprits), None)
    return next(iter(devices.values()), None)
