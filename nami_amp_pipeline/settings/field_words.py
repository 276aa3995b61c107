"""What a setting is and must be, in words: for error messages and for the table in the docs."""

from __future__ import annotations

import math

from pydantic.fields import FieldInfo


def extra(field: FieldInfo, name: str) -> str:
    """What is said of a setting beside its type and bounds, such as its unit; empty if nothing is."""
    extra = field.json_schema_extra
    return str(extra.get(name, "")) if isinstance(extra, dict) else ""


def _bound(field: FieldInfo, name: str, default: float) -> float:
    return next((float(getattr(bound, name)) for bound in field.metadata if hasattr(bound, name)), default)


def expected(field: FieldInfo) -> str:
    """What a setting must be, for an error message."""
    said = extra(field, "expected")
    if said:
        return said
    whole = field.annotation is int
    unit = extra(field, "unit")
    number = f"a {'whole ' if whole else ''}number{f' of {unit}' if unit else ''}"
    low, above, high = _bound(field, "ge", -math.inf), _bound(field, "gt", -math.inf), _bound(field, "le", math.inf)
    if high >= 2**53:
        return f"{number} over {above:.0f}" if above > -math.inf else f"{number}, {low:.0f} or more"
    if above > -math.inf:
        return f"{number} over {above:.0f}, at most {high:.0f}"
    return f"{number} from {low:.0f} to {high:.0f}"
