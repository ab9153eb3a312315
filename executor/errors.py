"""Errors of the executor: what a user can cause, and what happens between its processes.

``ExecutorError`` is for users. The others never leave the room: they say, inside a worker, why a
step could not be done, and become messages to the agent, which recovers or ends the job.
"""

from __future__ import annotations

from traces.errors import TandemError, sentence


class ExecutorError(TandemError):
    """A job, worker map, lane, checkpoint or model that the executor cannot work with.

    Parameters name the place: ``where``, the offending ``value``, and ``expected``: what would be
    right.
    """

    def __init__(
        self,
        problem: str,
        *,
        where: object = None,
        value: object = None,
        expected: str | None = None,
    ) -> None:
        self.problem = problem
        self.where = where
        self.value = value
        self.expected = expected
        place = "" if where is None else str(where)
        super().__init__(sentence(problem, place, value, expected))


class PeerLostError(ExecutorError):
    """The exchange with the other devices broke: one of them died, hung or left."""


class GarbageError(ExecutorError):
    """A device sent what cannot be right; ``culprits`` are indices in the worker map, if known."""

    def __init__(
        self, problem: str, *, culprits: tuple[int, ...] = (), where: object = None
    ) -> None:
        super().__init__(problem, where=where)
        self.culprits = culprits
