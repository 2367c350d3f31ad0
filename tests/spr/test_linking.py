"""Linking: particles keep their names through crossings and gaps, and noise gets none."""

from __future__ import annotations

import numpy as np

from spr.detection import Disc
from spr.linking import link


def disc(x: float, y: float, radius: float = 10.0) -> Disc:
    return Disc(x, y, radius, 1.0, 500.0)


def test_crossing_particles_keep_their_names() -> None:
    found = []
    for t in range(40):
        a, b = disc(20 + 2.0 * t, 50, 12.0), disc(98 - 2.0 * t, 50.0 + 0.1 * t, 8.0)
        merged = abs(a.x - b.x) < 10
        found.append([disc((a.x + b.x) / 2, 51, 12.0)] if merged else [b, a])
    tracks = link(found)
    assert len(tracks) == 2
    for windows, discs in tracks:
        lone = [d for w, d in zip(windows, discs, strict=True) if w < 15 or w > 25]
        assert np.ptp([d.radius for d in lone]) == 0


def test_a_lost_particle_comes_back_under_its_name() -> None:
    found = [[disc(30, 30)] if t < 10 or t > 16 else [] for t in range(30)]
    ((windows, _),) = link(found)
    assert 9 in windows
    assert 17 in windows


def test_what_is_seen_once_is_no_particle() -> None:
    found = [[disc(30, 30)] + ([disc(70.0, 10.0 + t)] if t == 7 else []) for t in range(30)]
    assert len(link(found)) == 1
