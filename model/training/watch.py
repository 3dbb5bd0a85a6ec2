"""Ends a run that breaks what it was to better."""

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from .loop import DivergedError

UPDATES = 20  # that are looked at together: one batch may be hard
SHARE, SLACK = 1.25, 0.1  # of eight runs that came out well, the worst rose to 1.25 times its lowest and 0.05 nats


class Watch:
    """Sees a loss, update by update, and remembers the lowest median of `UPDATES`: a `Guard` of the loop."""

    def __init__(self, name: str) -> None:
        self._name, self._lowest = name, float("inf")
        self._recent: deque[float] = deque(maxlen=UPDATES)

    def state(self) -> dict[str, Any]:
        """What it remembers: a resumed run is ended where one that was not interrupted would have been."""
        return {"lowest": self._lowest, "recent": list(self._recent)}

    def load(self, state: dict[str, Any]) -> None:
        """Remember that."""
        self._lowest = state["lowest"]
        self._recent = deque(state["recent"], maxlen=UPDATES)

    def see(self, facts: Mapping[str, float]) -> None:
        """Take note of the loss, in nats. Raises DivergedError where the last ones are far above the lowest."""
        self._recent.append(facts[self._name])
        if len(self._recent) < UPDATES:
            return
        now = median(self._recent)
        self._lowest = min(self._lowest, now)
        if now > SHARE * self._lowest + SLACK:
            raise DivergedError(
                f"{self._name} was {self._lowest:.3g} and is {now:.3g} in the last {UPDATES} updates: "
                "what is trained gets worse, and a lower --lr may hold it; stopped"
            )
