"""A particle that tumbles: Brownian rotation with rare jumps as a hidden Markov chain over orientations.

The orientations of a search (view directions times in-plane angles) are the states, the images' likelihoods the
emissions, and forward-backward gives every frame's posterior from the whole sequence [1]_. On such a grid the
probability of a step depends on the two directions and on the difference of the two angles alone, and not on how the
grid is turned against the particle, so that one sparse matrix serves a whole search.

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

_REACH = 3.5  # standard deviations of a step that the matrix holds


@dataclass(frozen=True)
class RotationChain:
    """How orientations follow each other.

    kernel : (p, p) sparse, rows and columns sum to about 1: one frame's Brownian step between states. States are
        numbered ``angle * v + direction``. Symmetric but for the scaling of its rows.
    jump_rate : probability of a jump to anywhere in one frame.
    """

    kernel: Tensor
    jump_rate: float

    @property
    def n_states(self) -> int:
        return self.kernel.shape[0]


@dataclass(frozen=True)
class ChainPosterior:
    """posterior : (w, n, p) of every frame given its whole window, rows sum to 1. evidence : (w,) log, nats.

    jumps : (w, n - 1) posterior probability of a jump between neighbours in time.
    """

    posterior: Tensor
    evidence: Tensor
    jumps: Tensor


def brownian_kernel(frames: Tensor, n_angles: int, degrees_rms: float) -> Tensor:
    """One frame's step between the orientations of a search grid.

    Parameters
    ----------
    frames : (v, 3, 3) rotations of the view directions.
    n_angles : in-plane angles.
    degrees_rms : rms rotation between two frames; a third of its square is the variance about each axis.

    Returns
    -------
    (p, p) sparse CSR, p = v n_angles; symmetric and doubly stochastic to about 1e-3.

    Notes
    -----
    ``exp(-angle^2 / (2 sigma^2))``, where the variance of a position within its cell is added: a particle that moves
    by less than a cell still leaves it now and then.
    """
    v = len(frames)
    like = frames.new_zeros(())
    spacing = math.sqrt(4 * math.pi / v)
    variance = math.radians(degrees_rms) ** 2 / 3 + spacing**2 / 12
    reach = min(_REACH * math.sqrt(variance), math.pi)
    directions = frames[:, 2]
    first, second = (directions @ directions.T > math.cos(min(reach, math.pi - 1e-3))).nonzero().unbind(1)
    between = frames[second] @ frames[first].mT
    offsets = torch.arange(n_angles, device=frames.device)
    turn = offsets.to(like) * (2 * math.pi / n_angles)
    # trace of Rz(-turn) M
    plane, skew = between[:, 0, 0] + between[:, 1, 1], between[:, 1, 0] - between[:, 0, 1]
    trace = plane[:, None] * turn.cos() + skew[:, None] * turn.sin() + between[:, 2, 2, None]
    angle = torch.acos(((trace - 1) / 2).clamp(-1, 1))
    pair, offset = (angle < reach).nonzero().unbind(1)
    value = torch.exp(-(angle[pair, offset] ** 2) / (2 * variance))
    # Sinkhorn on directions: the angles are all alike
    scale = torch.ones(v, device=frames.device, dtype=frames.dtype)
    a, b = first[pair], second[pair]
    for _ in range(20):
        scale = scale / torch.zeros_like(scale).index_add_(0, a, value * scale[a] * scale[b]).sqrt()
    value = value * scale[a] * scale[b]
    angles = torch.arange(n_angles, device=frames.device)[:, None]
    rows = (angles * v + a).flatten()
    columns = ((angles + offset) % n_angles * v + b).flatten()
    size = (v * n_angles, v * n_angles)
    matrix = torch.sparse_coo_tensor(torch.stack((rows, columns)), value.repeat(n_angles), size, check_invariants=True)
    return matrix.coalesce().to_sparse_csr()


def forward_backward(chain: RotationChain, log_likelihood: Tensor) -> ChainPosterior:
    """Posterior of every frame over the states, given all frames of its window.

    Parameters
    ----------
    chain : of p states.
    log_likelihood : (w, n, p) nats, of w windows of n frames, in the order of time; overwritten.

    Returns
    -------
    ChainPosterior; its posterior takes the memory of ``log_likelihood``.
    """
    w, n, p = log_likelihood.shape
    peak = log_likelihood.amax(2)
    emission = log_likelihood.sub_(peak[..., None]).clamp_(min=-80.0).exp_()
    jump = chain.jump_rate
    ahead = torch.empty_like(emission)  # posterior of each frame from the frames before it, times its emission
    evidence = peak.sum(1)
    predicted = emission.new_full((w, p), 1 / p)
    for t in range(n):
        current = emission[:, t] * predicted
        total = current.sum(1)
        evidence = evidence + total.log()
        ahead[:, t] = current / total[:, None]
        predicted = (1 - jump) * (chain.kernel @ ahead[:, t].T).T + jump / p
    jumps = emission.new_zeros(w, max(n - 1, 0))
    later = emission.new_ones(w, p)
    for t in range(n - 1, -1, -1):
        both = ahead[:, t] * later
        seen = emission[:, t] * later
        emission[:, t] = both / both.sum(1, keepdim=True)
        if t == 0:
            break
        seen = seen / seen.mean(1, keepdim=True)  # so that a jump sees exactly 1
        stayed = (chain.kernel @ seen.T).T  # the kernel is symmetric
        later = (1 - jump) * stayed + jump
        jumps[:, t - 1] = jump / (ahead[:, t - 1] * later).sum(1)
    return ChainPosterior(emission, evidence, jumps)
