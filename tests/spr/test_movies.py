"""A small simulated movie on its whole way: the particle is found, followed, and cut out without its background."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.data import InputError
from common.io import write_images
from common.io.movie import Movie, read_movie
from common.simulation_movie import MovieSimulation, MovieTruth, draw_truth, simulate_movie
from spr.movies import TrackedMovie, extract, track_movie

SETTINGS = MovieSimulation(n_frames=60, frame_size=144, diameters=(16.0,), dose=40.0, seed=4)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Movie, MovieTruth, TrackedMovie]:
    generator = torch.Generator().manual_seed(SETTINGS.seed)
    truth = draw_truth(SETTINGS, generator)
    path = tmp_path_factory.mktemp("movie") / "m.mrc"
    write_images(path, torch.stack(list(simulate_movie(SETTINGS, truth, generator))), SETTINGS.pixel_size)
    movie = read_movie(path, dose=40.0)
    return movie, truth, track_movie(movie)


def test_one_particle_is_found_and_followed(tracked: tuple[Movie, MovieTruth, TrackedMovie]) -> None:
    _, truth, found = tracked
    (track,) = found.tracks
    off = (track.positions - truth.centres[:, 0]) / SETTINGS.pixel_size
    assert float(off.square().sum(1).mean().sqrt()) < 2.0
    assert bool(track.seen.all())
    assert 5 < track.radius < 12
    assert not any(track.weights.reasons)


def test_both_sheets_are_found(tracked: tuple[Movie, MovieTruth, TrackedMovie]) -> None:
    angles = sorted(lattice.angle for lattice in tracked[2].background.lattices)
    assert angles == pytest.approx([3.0, 20.0], abs=0.3)


def test_graphene_is_gone_from_the_extracted_images(tracked: tuple[Movie, MovieTruth, TrackedMovie]) -> None:
    movie, truth, found = tracked
    ((stack, shifts),) = extract(movie, found)
    d, pixel = stack.box_size, stack.pixel_size
    assert float(stack.images.mean()) == pytest.approx(40 * pixel**2, rel=0.05)
    assert float(shifts.abs().max()) <= 0.5 * pixel + 1e-4
    axis = torch.arange(d) * pixel
    power = []
    for images in (stack.images, movie.frames(0, 60)[:, :d, :d]):
        flat = images - images.mean((1, 2), keepdim=True)
        total = 0.0
        for g in truth.graphene[0].float():
            wave_x, wave_y = (torch.polar(torch.ones(1), -2 * torch.pi * g[k] * axis) for k in range(2))
            coefficient = (flat.to(torch.complex64) @ wave_x) @ wave_y
            total += float(coefficient.abs().square().mean()) / 2 / (d * d * 40 * pixel**2)
        power.append(total)
    assert power[0] < 2.0  # of the counting noise
    assert power[1] > 2 * power[0]


def test_a_movie_of_noise_holds_no_particle(tmp_path: Path) -> None:
    frames = torch.poisson(torch.full((30, 96, 96), 3.0), generator=torch.Generator().manual_seed(1))
    write_images(tmp_path / "m.mrc", frames, 0.4)
    with pytest.raises(InputError, match="no particle stands out"):
        track_movie(read_movie(tmp_path / "m.mrc"))
