"""Compares what was delivered with what Amplitude holds, day by day, and sends again what is missing."""

from typing import Final

MISSING: Final = "missing"
"""Why an event is held that Amplitude turned out not to hold."""
