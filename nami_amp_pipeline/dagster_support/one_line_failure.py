"""A failure that is a line for people, or a few: Dagster's pages show no stack trace under it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterUserCodeProcessError
from dagster._utils.error import SerializableErrorInfo  # type: ignore[attr-defined]

# No public name lets a step fail without a stack trace. Of an error that another process reported, Dagster keeps what
# that process said of it; ours says that there is no stack.


class OneLineFailure(DagsterUserCodeProcessError, dg.Failure):
    """What a step raises that fails for a known reason. It is not retried.

    Args:
        text: for people.
        metadata: as ``dagster.Failure`` takes it.
    """

    def __init__(self, text: str, metadata: Mapping[str, Any]) -> None:
        said = SerializableErrorInfo(message=text, stack=[], cls_name=dg.Failure.__name__)
        super().__init__(text, metadata, False, user_code_process_error_infos=[said])  # type: ignore[no-untyped-call]
