"""Errors a user of the workload can cause. Each says what is wrong, where, and what would be right.

The room imports nothing of ours, so it has its own base class; like every such error here it is a
``ValueError``.
"""

from __future__ import annotations


class ModelError(ValueError):
    """A configuration, batch, file or request that cannot be used.

    Parameters name the place: ``where`` (a field, a file, a table), the offending ``value``, and
    ``expected``: what would be right. ``exit_code`` is what the command line returns.
    """

    exit_code = 1

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
        text = problem if where is None else f"{where}: {problem}"
        if value is not None:
            shown = repr(value)
            text += f" (found {shown if len(shown) <= 80 else shown[:77] + '...'})"
        if expected:
            text += f"; expected {expected}"
        super().__init__(text)
