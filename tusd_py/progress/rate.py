"""The rate of an upload over the last seconds, and the time that is left. No I/O."""

from __future__ import annotations

from collections import deque

WINDOW = 5.0  # seconds over which the rate is an average, and after which an upload without progress has none
MIN_SPAN = 0.1  # seconds between the first and the last sample, below which the rate would be a guess
MAX_SAMPLES = 8
MAX_PAUSE = 20.0  # seconds between two samples of one rate: storages may commit every ten
SPACING = WINDOW / MAX_SAMPLES  # seconds between two samples at least


class RateMeter:
    """The samples of the offset of one upload."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=MAX_SAMPLES)

    def restart(self, time: float, offset: int) -> None:
        """Forget all samples, and begin with this one: the upload has stood still."""
        self._samples.clear()
        self._samples.append((time, offset))

    def add(self, time: float, offset: int) -> None:
        """Add the offset at a time in seconds; after a step back, or a long pause, the rate begins anew."""
        samples = self._samples
        if samples and (not samples[-1][0] <= time <= samples[-1][0] + MAX_PAUSE or offset < samples[-1][1]):
            samples.clear()
        if len(samples) > 1 and samples[-1][0] - samples[-2][0] < SPACING:
            samples[-1] = (time, offset)
        else:
            samples.append((time, offset))

    def rate(self, now: float) -> float | None:
        """Return the bytes a second; None if that is not known yet, 0 after some seconds without progress."""
        if not self._samples:
            return None
        (first, start), (last, end) = self._samples[0], self._samples[-1]
        if now - last > WINDOW:
            return 0.0
        return (end - start) / (last - first) if last - first >= MIN_SPAN else None


def seconds_left(rate: float | None, offset: int, length: int | None) -> float | None:
    """Return the seconds until the end at this rate; None if that is not known."""
    if not rate or length is None:
        return None
    return round(max(0, length - offset) / rate, 1)
