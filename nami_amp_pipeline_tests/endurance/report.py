"""What a long run says: lines of figures as they come, and what did not hold."""

from __future__ import annotations

import sys
from collections.abc import Callable


def _to_stdout(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Report:
    """Writes lines, and remembers what failed.

    Args:
        write: takes a line.
    """

    def __init__(self, write: Callable[[str], None] = _to_stdout) -> None:
        self.failed: list[str] = []
        self._write = write

    def line(self, text: str) -> None:
        """Says something."""
        self._write(text)

    def check(self, truth: bool, text: str) -> None:
        """Something that must hold; only what does not is said."""
        if not truth:
            self.failed.append(text)
            self._write(f"FAILED: {text}")

    def zero(self, where: str, **counts: int) -> None:
        """Counts that must be zero."""
        for name, count in counts.items():
            self.check(count == 0, f"{where}: {name.replace('_', ' ')}: {count}")
