"""Random starts on a movie, and which of them found the same orientations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.atoms.tracing import TracingSettings
from common.rotations import geodesic_distance
from spr.ab_initio import SearchState
from spr.consensus import Consensus, ConsensusSettings, Start, judge, shared_atoms, traced
from spr.refinement import RefinedMap

_SAME = 10.0  # degrees, within which two orientations are taken to be the same
_TRIED = 150  # frames whose relative orientation is tried for all

OneStart = Callable[[int, int], tuple[SearchState, RefinedMap]]


def agree_in_time(
    once: OneStart, tracing: TracingSettings, settings: ConsensusSettings, *, seed: int
) -> tuple[Consensus, RefinedMap]:
    """Start from random maps until enough starts agree with the one that explains the movie best.

    Maps of one movie may differ in extent and in a stretch of time and still be of one structure, so that orientations
    are compared; of a particle that nearly maps onto itself they may differ and the atoms be the same. Either will do.

    Parameters
    ----------
    once : number of the start (from 1) and its seed -> the end of its search, and its poses and map refined.
    tracing : of the atoms that are compared.

    Returns
    -------
    The starts, and what the best of them came to. A start's log likelihood is the mean over all frames; frames that
    its map does not stand by count as none.
    """
    starts: list[Start] = []
    refined: list[RefinedMap] = []
    agreement = torch.eye(settings.most)
    while True:
        number = len(starts)
        state, found = once(number + 1, seed * 1000 + number)
        starts.append(Start(state, found.poses, float(found.gain.mean()), traced(found.volume, tracing)))
        refined.append(found)
        for other in range(number):
            alike = shared_orientations(refined[other].poses.rotations, found.poses.rotations)
            shared = max(alike, shared_atoms(starts[other].atoms, starts[number].atoms))
            agreement[other, number] = agreement[number, other] = shared
        consensus = judge(tuple(starts), agreement[: number + 1, : number + 1], settings, _SHARED)
        if consensus.reached or len(starts) == settings.most:
            return consensus, refined[consensus.best]


_SHARED = "orientations or atoms shared, whichever are more, up to rotation and hand"


def shared_orientations(a: Tensor, b: Tensor) -> float:
    """Fraction of orientations (n, 3, 3) that two lists share, up to one rotation of the particle and the hand."""
    best = 0.0
    tried = torch.arange(0, len(a), max(1, len(a) // _TRIED), device=a.device)
    for hand in (1.0, -1.0):  # the image of a mirrored particle is that of the particle seen through the image plane
        flip = torch.diag(torch.tensor([hand, hand, 1.0])).to(a)
        between = (flip @ a).mT @ b
        near = geodesic_distance(between[tried][:, None], between[None]) < _SAME
        best = max(best, float(near.to(a).mean(1).max()))
    return best
