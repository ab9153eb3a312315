"""How quantities are written for people: enough digits to compare, and words for long times."""

from __future__ import annotations

import math
from itertools import pairwise

Value = float | int | None


def number(value: Value) -> str:
    """Write a number with thousands separated, about six digits; an unknown one as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    for least, form in ((1000, ",.1f"), (10, ".2f"), (1e-4, ".4f")):
        if size >= least:
            return format(value, form)
    return f"{value:.2e}" if value else "0"


def signed(value: Value) -> str:
    """Write a difference with its sign."""
    text = number(value)
    return f"+{text}" if value is not None and not math.isnan(value) and value > 0 else text


def percent(value: float | None) -> str:
    """Write a relative difference in percent, with its sign."""
    if value is None:
        return "-"
    return f"{100 * value:+.1f} %" if value else "0 %"


def duration(seconds: Value) -> str:
    """Write seconds in the two largest units that matter: ``1 d 4 h``; '' below two minutes."""
    if seconds is None or math.isnan(seconds) or abs(seconds) < 120:
        return ""
    sign = "-" if seconds < 0 else ""
    left = round(abs(seconds))
    units = (("y", 31_536_000), ("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    for (name, size), (lower, part) in pairwise(units):
        if left >= size:
            whole, rest = divmod(left, size)
            rest //= part
            return f"{sign}{whole} {name}" + (f" {rest} {lower}" if rest else "")
    return ""
