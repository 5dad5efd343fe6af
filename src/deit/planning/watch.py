"""Watches a training while it runs: tells when it will take longer, or less long, than its forecast."""

from __future__ import annotations

_TOLERATED = 0.2  # of the forecast
_FIRST_SECONDS = 20.0  # before them an estimate says little


class ForecastWatch:
    """Compares the time that a training takes with its forecast.

    Args:
        forecast: Seconds of the training.
        started: Time at its beginning, of any clock in seconds.
    """

    def __init__(self, forecast: float, started: float) -> None:
        self._told = self._forecast = forecast
        self._started = started
        self._first: tuple[int, float] | None = None

    def after(self, step: int, total_steps: int, now: float) -> str | None:
        """Returns a sentence where the estimate differs by more than a fifth from the last one told, else None.

        Args:
            step: Steps done.
            total_steps: Steps in all.
            now: Time, of the same clock.
        """
        if self._first is None:
            self._first = step, now
            return None
        done, since = step - self._first[0], now - self._first[1]
        if not done or now - self._started < _FIRST_SECONDS:
            return None
        left = since / done * (total_steps - step)
        estimate = now - self._started + left
        if abs(estimate - self._told) <= _TOLERATED * self._told or left < _TOLERATED * self._forecast / 2:
            return None
        self._told = estimate
        pace = "slower" if estimate > self._forecast else "faster"
        return (
            f"The machine is {pace} than when it was measured: this part will take "
            f"about {estimate / 60:.1f} minutes, the forecast was {self._forecast / 60:.1f}. Its schedule "
            "stays as it is."
        )
