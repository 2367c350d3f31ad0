"""Simulated movies: their seed, their dose, and the truth that comes with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.data import InputError
from common.rotations import geodesic_distance
from common.simulation_movie import MovieSimulation, draw_truth, simulate_movie

SMALL = MovieSimulation(n_frames=4, frame_size=96, diameters=(10.0,))


def film(settings: MovieSimulation) -> torch.Tensor:
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.stack(list(simulate_movie(settings, draw_truth(settings, generator), generator)))


def test_a_movie_is_its_seed_and_counts_its_dose() -> None:
    one, same, other = film(SMALL), film(SMALL), film(replace(SMALL, seed=2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(one.mean()) == pytest.approx(20.0 * 0.36**2, rel=0.02)
    assert torch.equal(one, one.round())


def test_particles_tumble_and_diffuse_as_asked() -> None:
    settings = replace(SMALL, n_frames=400, jump_rate=0.0)
    truth = draw_truth(settings, torch.Generator().manual_seed(3))
    turns = geodesic_distance(truth.rotations[1:, 0], truth.rotations[:-1, 0])
    assert float(turns.square().mean().sqrt()) == pytest.approx(2.0, rel=0.1)
    steps = truth.centres[1:, 0] - truth.centres[:-1, 0]
    assert float(steps.std()) == pytest.approx(0.25, rel=0.1)


def test_a_particle_beyond_the_frame_is_refused() -> None:
    with pytest.raises(InputError, match="take larger frames"):
        draw_truth(replace(SMALL, diameters=(40.0,)), torch.Generator())
