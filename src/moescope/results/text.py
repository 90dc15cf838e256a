"""Numbers as people read them."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"


def number(value: Any, digits: int = 3) -> str:
    """A number as people write it: integers in full with separators, others to `digits` significant digits."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    size = abs(float(value))
    if size >= 10**digits:
        return f"{value:,.0f}"
    if size < 1e-4:
        return f"{value:.{digits - 1}e}"
    # The exponent after rounding: 9.996 has two digits before the point.
    exponent = int(f"{size:.{digits - 1}e}".partition("e")[2])
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return MISSING if share is None or math.isnan(share) else f"{100 * share:.{digits}f} %"


def size(num_bytes: float) -> str:
    """A number of bytes with its unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes:.0f} B"
