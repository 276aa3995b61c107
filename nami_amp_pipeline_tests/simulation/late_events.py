"""Work in the background that a seed puts off: some at once, some when it is looked at, some at the end."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future

from nami_amp_pipeline.errors import NamiAmpError


class Late:
    """A background of one thread whose moments are drawn.

    Args:
        rng: draws them.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._left: list[tuple[_Looked, Callable[[], None]]] = []
        self.put_off = 0

    def start(self, act: Callable[[], None]) -> Future[None]:
        """Puts it behind what is left, of which some is done now."""
        future = _Looked(self.go_on)
        self._left.append((future, act))
        self.put_off += 1
        self.go_on()
        return future

    def go_on(self) -> None:
        """Does some of what is left."""
        while self._left and self._rng.random() < 0.4:
            self._do_one()

    def close(self) -> None:
        """Does all that is left."""
        while self._left:
            self._do_one()

    def _do_one(self) -> None:
        future, act = self._left.pop(0)
        try:
            act()
        except NamiAmpError as error:
            future.set_exception(error)
        else:
            future.set_result(None)


class _Looked(Future[None]):
    """A future that may be done by the time that somebody looks."""

    def __init__(self, go_on: Callable[[], None]) -> None:
        super().__init__()
        self._go_on = go_on

    def done(self) -> bool:
        self._go_on()
        return super().done()
