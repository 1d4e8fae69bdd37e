"""Ends a streamed text before the first of the texts at which it shall stop."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Lets text through that surely stands before every stop.

    Attributes:
        met: a stop has come; nothing behind it is let through.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.met = False

    def feed(self, text: str) -> str:
        """Takes the next piece and returns what can be shown; the beginning of a possible stop is held back."""
        if self.met:
            return ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.met = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((self._begun(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def _begun(self, stop: str) -> int:
        """The length of the longest end of the held text that begins the stop."""
        most = min(len(stop) - 1, len(self._held))
        return next((size for size in range(most, 0, -1) if self._held.endswith(stop[:size])), 0)

    def rest(self) -> str:
        """Returns what was held back, when no more comes."""
        shown, self._held = ("" if self.met else self._held), ""
        return shown
