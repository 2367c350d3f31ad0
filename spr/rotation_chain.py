"""A particle that tumbles: Brownian rotation with rare jumps as a hidden Markov chain over orientations.

The orientations of a search (view directions times in-plane angles) are the states, the images' likelihoods the
emissions, and forward-backward gives every frame's posterior from the whole sequence [1]_. Each frame brings its
likeliest states only. On such a grid the probability of a step depends on the two directions and on the difference of
the two angles alone, and not on how the grid is turned against the particle, so that one table serves a whole search.

References
----------
.. [1] Rabiner, "A tutorial on hidden Markov models and selected applications in speech recognition",
   Proc. IEEE 77, 257 (1989). doi:10.1109/5.18626
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.rotations import geodesic_distance

_REACH = 3.0  # standard deviations of a step that the table holds
_NEGLIGIBLE = 1e-6  # of a frame's probability; states with less lead nowhere


@dataclass(frozen=True)
class RotationChain:
    """How orientations follow each other; states are numbered ``angle * v + direction``.

    directions, turns : (v, m) where a step from each of the v directions may lead, and by how many in-plane angles.
    probabilities : (v, m) of these steps, 0 where there are fewer than m; the whole is symmetric.
    n_angles : in-plane angles. jump_rate : probability of a jump to anywhere in one step.
    """

    directions: Tensor
    turns: Tensor
    probabilities: Tensor
    n_angles: int
    jump_rate: float

    @property
    def n_states(self) -> int:
        return len(self.directions) * self.n_angles

    def spread(self, states: Tensor, weights: Tensor) -> Tensor:
        """Probability (p,) one step after ``weights`` (k,) on ``states`` (k,), without jumps."""
        v = len(self.directions)
        direction, angle = states % v, states // v
        reached = ((angle[:, None] + self.turns[direction]) % self.n_angles) * v + self.directions[direction]
        arriving = weights[:, None] * self.probabilities[direction]
        return arriving.new_zeros(self.n_states).index_add_(0, reached.flatten(), arriving.flatten())


@dataclass(frozen=True)
class ChainPosterior:
    """posterior : (n, k) of every frame's states given the whole sequence, rows sum to 1. evidence : log, nats.

    jumps : (n - 1,) posterior probability of a jump between neighbours in time.
    """

    posterior: Tensor
    evidence: float
    jumps: Tensor


def brownian_chain(frames: Tensor, n_angles: int, degrees_rms: float, jump_rate: float) -> RotationChain:
    """Steps between the orientations of a search grid.

    Parameters
    ----------
    frames : (v, 3, 3) rotations of the view directions.
    n_angles : in-plane angles.
    degrees_rms : rms rotation in a step; a third of its square is the variance about each axis.
    jump_rate : probability of a jump in a step, in [0, 1).

    Notes
    -----
    ``exp(-angle^2 / (2 sigma^2))``, where the variance of a position within its cell is added: a particle that moves
    by less than a cell still leaves it now and then. Scaled to be symmetric and doubly stochastic to about 1e-3.
    """
    v = len(frames)
    variance = math.radians(degrees_rms) ** 2 / 3 + 4 * math.pi / v / 12
    reach = min(_REACH * math.sqrt(variance), math.pi - 1e-3)
    axes = frames[:, 2]
    first, second = (axes @ axes.T > math.cos(reach)).nonzero().unbind(1)
    between = frames[second] @ frames[first].mT
    turn = torch.arange(n_angles, device=frames.device).to(frames) * (2 * math.pi / n_angles)
    # trace of Rz(-turn) M
    plane, skew = between[:, 0, 0] + between[:, 1, 1], between[:, 1, 0] - between[:, 0, 1]
    trace = plane[:, None] * turn.cos() + skew[:, None] * turn.sin() + between[:, 2, 2, None]
    angle = torch.acos(((trace - 1) / 2).clamp(-1, 1))
    pair, turns = (angle < reach).nonzero().unbind(1)
    value = torch.exp(-(angle[pair, turns] ** 2) / (2 * variance))
    a, b = first[pair], second[pair]
    # Sinkhorn on directions: the angles are all alike
    scale = frames.new_ones(v)
    for _ in range(20):
        scale = scale / torch.zeros_like(scale).index_add_(0, a, value * scale[a] * scale[b]).sqrt()
    value = value * scale[a] * scale[b]
    count = torch.bincount(a, minlength=v)
    place = torch.arange(len(a), device=a.device) - (count.cumsum(0) - count)[a]  # ``a`` rises
    shape = (v, int(count.max()))
    tables = (a.new_zeros(shape), a.new_zeros(shape), value.new_zeros(shape))
    for table, column in zip(tables, (b, turns, value), strict=True):
        table[a, place] = column
    return RotationChain(*tables, n_angles, jump_rate)


def forward_backward(chain: RotationChain, states: Tensor, log_likelihood: Tensor) -> ChainPosterior:
    """Posterior of every frame over its states, given all frames.

    Parameters
    ----------
    chain : of p states.
    states : (n, k) of each frame, in the order of time; what is not among them is taken to be impossible.
    log_likelihood : (n, k) nats.
    """
    n, p, jump = len(states), chain.n_states, chain.jump_rate
    peak = log_likelihood.amax(1)
    emission = (log_likelihood - peak[:, None]).exp()
    ahead = torch.empty_like(emission)  # posterior of each frame from the frames before it and itself
    evidence = peak.double().sum()
    predicted = emission.new_full((p,), 1 / p)
    for t in range(n):
        current = emission[t] * predicted[states[t]]
        total = current.sum()
        evidence = evidence + total.double().log()
        ahead[t] = current / total
        held = ahead[t] > _NEGLIGIBLE
        predicted = (1 - jump) * chain.spread(states[t][held], ahead[t][held]) + jump / p
    posterior = torch.empty_like(emission)
    jumps = emission.new_zeros(max(n - 1, 0))
    later = torch.ones_like(emission[0])
    for t in range(n - 1, -1, -1):
        both = ahead[t] * later
        posterior[t] = both / both.sum()
        if t == 0:
            break
        seen = emission[t] * later
        seen = seen / seen.sum()
        held = seen > _NEGLIGIBLE
        stayed = chain.spread(states[t][held], seen[held])  # the steps are symmetric
        later = (1 - jump) * stayed[states[t - 1]] + jump / p
        jumps[t - 1] = jump / p / (ahead[t - 1] * later).sum()
    return ChainPosterior(posterior, float(evidence), jumps)


def likeliest_path(
    rotations: Tensor, log_likelihood: Tensor, frames: Tensor, degrees_per_frame: float, jump_rate: float
) -> Tensor:
    """The likeliest choice (n,) of one orientation in each frame: Brownian steps with jumps, off any grid (Viterbi).

    Parameters
    ----------
    rotations : (n, c, 3, 3) the choices. log_likelihood : (n, c) nats.
    frames : (n,) numbers of the frames, rising; gaps are allowed.
    degrees_per_frame : rms rotation in a frame. jump_rate : probability of a jump to anywhere in a frame.
    """
    gap = (frames[1:] - frames[:-1]).to(log_likelihood)[:, None, None]
    variance = math.radians(degrees_per_frame) ** 2 / 3 * gap
    angle = torch.deg2rad(geodesic_distance(rotations[:-1, :, None], rotations[1:, None]))
    # the density of a step against that of a jump, which is the same for all orientations
    flat = math.log(8 * math.pi**2)
    steps = -angle.square() / (2 * variance) - 1.5 * torch.log(2 * math.pi * variance) + flat
    moves = torch.logaddexp(steps, torch.log((jump_rate * gap).clamp(min=1e-30)).expand_as(steps))
    reached, came_from = log_likelihood[0], []
    for t in range(1, len(frames)):
        best = (reached[:, None] + moves[t - 1]).max(0)
        came_from.append(best.indices)
        reached = best.values + log_likelihood[t]
    path = [int(reached.argmax())]
    for indices in reversed(came_from):
        path.append(int(indices[path[-1]]))
    return torch.tensor(path[::-1], device=rotations.device)
