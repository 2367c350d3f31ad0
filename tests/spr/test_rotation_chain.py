import itertools

import pytest
import torch

from common.iteration import step_generator
from spr.orientation_search import random_frames
from spr.rotation_chain import RotationChain, brownian_kernel, forward_backward

N_DIRECTIONS, N_ANGLES, N_FRAMES = 8, 4, 3


@pytest.fixture(scope="module")
def chain():
    frames = random_frames(N_DIRECTIONS, generator=step_generator(0, 1)).double()
    return RotationChain(brownian_kernel(frames, N_ANGLES, 40.0), 0.1)


@pytest.fixture(scope="module")
def likelihood(chain):
    generator = torch.Generator().manual_seed(3)
    return 3 * torch.randn(1, N_FRAMES, chain.n_states, generator=generator, dtype=torch.float64)


def test_kernel_is_symmetric_and_doubly_stochastic():
    frames = random_frames(200, generator=step_generator(0, 2)).double()
    kernel = brownian_kernel(frames, 24, 5.0).to_dense()
    torch.testing.assert_close(kernel, kernel.T, atol=1e-12, rtol=0)
    torch.testing.assert_close(kernel.sum(1), torch.ones(200 * 24, dtype=torch.float64), atol=1e-3, rtol=0)


def test_marginals_evidence_and_jumps_are_those_of_all_paths(chain, likelihood):
    p, j = chain.n_states, chain.jump_rate
    stay, leap = (1 - j) * chain.kernel.to_dense(), j / p
    found = forward_backward(chain, likelihood.clone())
    emission = likelihood[0].exp()
    marginal = torch.zeros(N_FRAMES, p, dtype=torch.float64)
    jumped = torch.zeros(N_FRAMES - 1, dtype=torch.float64)
    for a, b, jumps in itertools.product(range(p), range(p), itertools.product((False, True), repeat=2)):
        first = leap if jumps[0] else stay[a, b]
        second = torch.full((p,), leap, dtype=torch.float64) if jumps[1] else stay[b]
        weight = emission[0, a] / p * first * emission[1, b] * second * emission[2]  # over the last frame's states
        marginal[0, a] += weight.sum()
        marginal[1, b] += weight.sum()
        marginal[2] += weight
        jumped += weight.sum() * torch.tensor(jumps)
    total = marginal[0].sum()
    torch.testing.assert_close(found.posterior[0], marginal / total, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.evidence[0], total.log(), atol=2e-3, rtol=0)
    torch.testing.assert_close(found.jumps[0], jumped / total, atol=1e-3, rtol=0)


def test_reversed_time_gives_the_same_marginals(chain, likelihood):
    forth = forward_backward(chain, likelihood.clone()).posterior
    back = forward_backward(chain, likelihood.flip(1)).posterior.flip(1)
    torch.testing.assert_close(forth, back, atol=1e-3, rtol=0)
