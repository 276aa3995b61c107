"""Run config that takes plain values only.

In a field of ``dg.Config`` a text may be given as ``{env: NAME}``, which Dagster replaces by that variable's value:
whoever may launch a run could read any secret of its process in an error message. Fields made here reject this.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args, get_origin

import dagster as dg
from pydantic import BaseModel

_PLAIN: Final = {str: dg.String, int: dg.Int, float: dg.Float, bool: dg.Bool}


def plain_fields(model: type[BaseModel]) -> dict[str, dg.Field]:
    """The fields of a Pydantic model as a ``config_schema``.

    Args:
        model: all its fields have defaults, and types ``str``, ``int``, ``float``, ``bool``, ``Literal`` of texts, a
            list or ``None`` of these.

    Raises:
        TypeError: a field has another type.
    """
    defaults = model().model_dump()
    return {
        name: dg.Field(
            _plain(f"{model.__name__}_{name}", field.annotation),
            default_value=defaults[name],
            is_required=False,
            description=field.description,
        )
        for name, field in model.model_fields.items()
    }


def _plain(name: str, kind: Any) -> Any:
    if kind in _PLAIN:
        return _PLAIN[kind]
    origin, parts = get_origin(kind), get_args(kind)
    if origin is list:
        return dg.Array(_plain(name, parts[0]))
    if origin is Literal and all(isinstance(part, str) for part in parts):
        return dg.Enum(name, [dg.EnumValue(part) for part in parts])
    if len(parts) == 2 and parts[1] is type(None):
        return dg.Noneable(_plain(name, parts[0]))
    raise TypeError(f"{name}: {kind} has no plain type in Dagster")
