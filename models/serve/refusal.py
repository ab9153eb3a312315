"""What a service answers when it does not score: each with the HTTP status that says its kind.

A plain ``ModelError`` from the checks of a request is 422: the request itself must change. These
are the others.
"""

from __future__ import annotations

from models.errors import ModelError

UNPROCESSABLE = 422


class Refusal(ModelError):  # noqa: N818  nothing went wrong
    """A request that is in order, but cannot be answered as things stand."""

    status = 500


class UnknownVersion(Refusal):
    """A version that is not served."""

    status = 404


class NotEncoded(Refusal):
    """A user of whom no history is held, for this version and request time."""

    status = 404


class NotAppendable(Refusal):
    """A history to which this version's network cannot append events."""

    status = 409


class Busy(Refusal):
    """Too many requests are waiting already."""

    status = 503


class Closed(Refusal):
    """The service is shutting down."""

    status = 503


class NotFinite(Refusal):
    """A score that is no number, so nobody's answer."""

    status = 500


def status_of(error: ModelError) -> int:
    """Return the HTTP status that fits an error."""
    return error.status if isinstance(error, Refusal) else UNPROCESSABLE
