"""When is a replica left alone, and when is it tried again? Pure: told what happened and when."""

from __future__ import annotations


class Breaker:
    """Opens after ``failures`` without an answer between them. After a pause, which doubles with every probe
    that fails, it wants a probe; one that is answered closes it."""

    def __init__(self, failures: int = 3, pause: float = 0.1, longest: float = 5.0) -> None:
        self._most, self._first, self._longest = max(1, failures), pause, longest
        self._failures, self._pause = 0, pause
        self._until: float | None = None

    @property
    def is_open(self) -> bool:
        return self._until is not None

    def wants_probe(self, now: float) -> bool:
        return self._until is not None and now >= self._until

    def answered(self) -> None:
        """A question was answered; while it is open, one that was asked before says nothing."""
        if self._until is None:
            self._failures, self._pause = 0, self._first

    def failed(self, now: float) -> None:
        """A question or a probe had no answer."""
        self._failures += 1
        if self._until is not None:
            if now >= self._until:
                self._pause = min(self._pause * 2, self._longest)
                self._until = now + self._pause
        elif self._failures >= self._most:
            self._until = now + self._pause

    def probed(self) -> None:
        """A probe was answered. One failure more opens it again, for longer."""
        if self._until is not None:
            self._until = None
            self._failures = self._most - 1
            self._pause = min(self._pause * 2, self._longest)
