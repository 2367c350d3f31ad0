"""A chain over orientations against the sum over all its paths."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from common.iteration import step_generator
from common.rotations import geodesic_distance, random_rotations, rotation_from_vector
from spr.orientation_search import random_frames
from spr.rotation_chain import RotationChain, brownian_chain, forward_backward, likeliest_path

N_DIRECTIONS, N_ANGLES, N_FRAMES = 8, 4, 3


@pytest.fixture(scope="module")
def chain() -> RotationChain:
    frames = random_frames(N_DIRECTIONS, generator=step_generator(0, 1)).double()
    return brownian_chain(frames, N_ANGLES, 40.0, 0.1)


@pytest.fixture(scope="module")
def likelihood(chain: RotationChain) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return 3 * torch.randn(N_FRAMES, chain.n_states, generator=generator, dtype=torch.float64)


def all_states(chain: RotationChain) -> Tensor:
    return torch.arange(chain.n_states).expand(N_FRAMES, -1)


def dense(chain: RotationChain) -> Tensor:
    """(p, p) probability of each step."""
    p = chain.n_states
    one = torch.ones(1, dtype=torch.float64)
    return torch.stack([chain.spread(torch.tensor([state]), one) for state in range(p)])


def test_steps_are_symmetric_and_doubly_stochastic() -> None:
    frames = random_frames(60, generator=step_generator(0, 2)).double()
    steps = dense(brownian_chain(frames, 16, 8.0, 0.0))
    torch.testing.assert_close(steps, steps.T, atol=1e-12, rtol=0)
    torch.testing.assert_close(steps.sum(1), torch.ones(60 * 16, dtype=torch.float64), atol=1e-3, rtol=0)


def test_marginals_evidence_and_jumps_are_those_of_all_paths(chain: RotationChain, likelihood: Tensor) -> None:
    p, j = chain.n_states, chain.jump_rate
    stay, leap = (1 - j) * dense(chain), j / p
    found = forward_backward(chain, all_states(chain), likelihood)
    emission = likelihood.exp()
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
    torch.testing.assert_close(found.posterior, marginal / total, atol=1e-3, rtol=0)
    assert found.evidence == pytest.approx(float(total.log()), abs=2e-3)
    torch.testing.assert_close(found.jumps, jumped / total, atol=1e-3, rtol=0)


def test_states_that_a_frame_lacks_are_impossible(chain: RotationChain, likelihood: Tensor) -> None:
    """A short list of states is the whole list with a likelihood of nothing elsewhere."""
    states = torch.stack([row.argsort(descending=True)[:9] for row in likelihood])
    short = forward_backward(chain, states, likelihood.gather(1, states))
    masked = torch.full_like(likelihood, -1e4).scatter(1, states, likelihood.gather(1, states))
    whole = forward_backward(chain, all_states(chain), masked)
    torch.testing.assert_close(short.posterior, whole.posterior.gather(1, states), atol=1e-9, rtol=0)
    torch.testing.assert_close(short.jumps, whole.jumps, atol=1e-9, rtol=0)


def test_reversed_time_gives_the_same_marginals(chain: RotationChain, likelihood: Tensor) -> None:
    forth = forward_backward(chain, all_states(chain), likelihood).posterior
    back = forward_backward(chain, all_states(chain), likelihood.flip(0)).posterior.flip(0)
    torch.testing.assert_close(forth, back, atol=1e-3, rtol=0)


def test_without_steps_or_jumps_all_frames_share_one_state(chain: RotationChain, likelihood: Tensor) -> None:
    still = replace(
        chain,
        directions=torch.arange(N_DIRECTIONS)[:, None],
        turns=torch.zeros(N_DIRECTIONS, 1, dtype=torch.long),
        probabilities=torch.ones(N_DIRECTIONS, 1, dtype=torch.float64),
        jump_rate=0.0,
    )
    found = forward_backward(still, all_states(chain), likelihood)
    expected = torch.softmax(likelihood.sum(0), 0)
    torch.testing.assert_close(found.posterior, expected.expand_as(found.posterior), atol=1e-3, rtol=0)


def test_the_likeliest_path_is_the_best_of_all_paths() -> None:
    generator = torch.Generator().manual_seed(5)
    n, c, degrees, rate = 5, 3, 6.0, 1e-3
    base = random_rotations(1, generator=generator)[0].double()
    turns = rotation_from_vector(0.1 * torch.randn(n, c, 3, generator=generator, dtype=torch.float64))
    rotations, frames = turns @ base, torch.tensor([0, 1, 2, 5, 6])
    likelihood = 4 * torch.randn(n, c, generator=generator, dtype=torch.float64)

    def value(path: tuple[int, ...]) -> float:
        total = float(likelihood[0, path[0]])
        for t in range(1, n):
            gap = int(frames[t] - frames[t - 1])
            variance = math.radians(degrees) ** 2 / 3 * gap
            angle = math.radians(float(geodesic_distance(rotations[t - 1, path[t - 1]], rotations[t, path[t]])))
            density = math.exp(-(angle**2) / (2 * variance)) / (2 * math.pi * variance) ** 1.5 * 8 * math.pi**2
            total += float(likelihood[t, path[t]]) + math.log(density + rate * gap)
        return total

    best = max(itertools.product(range(c), repeat=n), key=value)
    assert tuple(likeliest_path(rotations, likelihood, frames, degrees, rate).tolist()) == best
    alone = tuple(likelihood.argmax(1).tolist())
    assert best != alone  # time has a say


def test_a_jump_is_taken_where_the_images_ask_for_it() -> None:
    still = torch.eye(3, dtype=torch.float64).expand(20, 3, 3)
    turned = rotation_from_vector(torch.tensor([0.0, 0.8, 0.0], dtype=torch.float64)) @ still
    rotations = torch.stack((still, turned), 1)
    likelihood = torch.zeros(20, 2, dtype=torch.float64)
    likelihood[:9, 0], likelihood[9:, 1], likelihood[4, 1] = 5.0, 5.0, 12.0
    path = likeliest_path(rotations, likelihood, torch.arange(20), 2.0, 1e-6)
    assert path.tolist() == [0] * 9 + [1] * 11
