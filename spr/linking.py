"""Discs found window by window become tracks: the same particle through time, through gaps, and through crossings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from spr.detection import Disc


@dataclass(frozen=True)
class LinkingSettings:
    """How discs are joined.

    step : angstrom, rms movement of a particle from one window to the next on each axis.
    memory : windows that a particle may be out of sight before it is given up.
    least_share : of all windows in which a particle must be seen, so that it is not noise.
    """

    step: float = 2.0
    memory: int = 12
    least_share: float = 0.15


@dataclass
class _Track:
    windows: list[int]
    discs: list[Disc]
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))

    def predict(self, window: int) -> np.ndarray:
        last = np.array([self.discs[-1].x, self.discs[-1].y])
        return last + self.velocity * min(window - self.windows[-1], 4)

    def add(self, window: int, disc: Disc) -> None:
        moved = np.array([disc.x - self.discs[-1].x, disc.y - self.discs[-1].y]) / (window - self.windows[-1])
        self.velocity = 0.7 * self.velocity + 0.3 * moved
        self.windows.append(window)
        self.discs.append(disc)

    def size(self) -> float:
        return float(np.median([disc.radius for disc in self.discs]))


def link(
    found: Sequence[Sequence[Disc]], settings: LinkingSettings | None = None
) -> list[tuple[list[int], list[Disc]]]:
    """Tracks from the discs of each window.

    Parameters
    ----------
    found : one sequence of discs for each window, in time.

    Returns
    -------
    (windows, discs) of each particle, those seen most often first; a window in which it was not seen is left out.

    Notes
    -----
    Assignment of least cost, window by window (Hungarian method): distance to where the particle is heading, in units
    of how far it may have moved meanwhile, plus the logarithm of the radius: so particles that cross keep their names
    by their course and their size.
    """
    settings = settings or LinkingSettings()
    tracks: list[_Track] = []
    for window, discs in enumerate(found):
        alive = [track for track in tracks if window - track.windows[-1] <= settings.memory]
        cost = np.full((len(alive), len(discs)), np.inf)
        for i, track in enumerate(alive):
            gap = window - track.windows[-1]
            # beyond the random walk, the error of the last two centres and of the speed drawn from them
            sigma = settings.step * math.sqrt(gap + 2)
            for j, disc in enumerate(discs):
                off = float(np.hypot(*(track.predict(window) - (disc.x, disc.y)))) / sigma
                if off < 4:
                    cost[i, j] = off**2 / 2 + (math.log(disc.radius / track.size()) / 0.25) ** 2 / 2
        used: set[int] = set()
        if cost.size:
            rows, columns = linear_sum_assignment(np.where(np.isfinite(cost), cost, 1e6))
            for i, j in zip(rows, columns, strict=True):
                if np.isfinite(cost[i, j]):
                    alive[i].add(window, discs[j])
                    used.add(int(j))
        tracks += [_Track([window], [disc]) for j, disc in enumerate(discs) if j not in used]
    least = max(2.0, settings.least_share * len(found)) if len(found) > 2 else 1.0
    kept = sorted((track for track in tracks if len(track.windows) >= least), key=lambda t: -len(t.windows))
    return [(track.windows, track.discs) for track in kept]
