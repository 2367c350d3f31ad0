"""A small simulated movie on its whole way: the particle is found, followed, and cut out without its background."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.data import InputError
from common.io import write_images
from common.io.movie import Movie, read_movie
from common.simulation_movie import MovieSimulation, MovieTruth, draw_truth, simulate_movie
from spr.background import without_graphene
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


def test_platinum_beside_graphene_keeps_its_power(tracked: tuple[Movie, MovieTruth, TrackedMovie]) -> None:
    """What was taken off the noisy movie, taken off the same without noise: Pt 111 is as strong as without graphene."""
    movie, truth, found = tracked
    counts = movie.frames(0, len(movie))
    taken = counts - counts.mean((1, 2), keepdim=True) - without_graphene(counts, 0, found.background, found.motion)[0]
    bare = replace(truth, graphene=truth.graphene[:0])
    quiet = replace(SETTINGS, dose=None, graphene_angles=())
    with_, without = (
        torch.stack(list(simulate_movie(quiet, scene, torch.Generator().manual_seed(2)))) for scene in (truth, bare)
    )
    scale = counts.mean() / with_.mean()
    inside = torch.stack([_disc(truth.centres[t, 0], counts.shape[-1]) for t in range(len(counts))])
    k_y, k_x = (f(counts.shape[-1], SETTINGS.pixel_size) for f in (torch.fft.fftfreq, torch.fft.rfftfreq))
    k = torch.sqrt(k_y[:, None] ** 2 + k_x**2)
    near_111 = (k > 0.43) & (k < 0.456)

    def near_platinum(images: Tensor) -> Tensor:
        flat = images - images.mean((1, 2), keepdim=True)
        return torch.fft.rfft2(flat * inside)[:, near_111]

    bare_, before, after = (near_platinum(x) for x in (without * scale, with_ * scale, with_ * scale - taken))
    kept = (bare_.conj() * after).real.sum() / bare_.abs().square().sum()
    assert float(kept) ** 2 > 0.95
    graphene, left = ((x - bare_).abs().square().sum() for x in (before, after))
    assert float(left) < 0.2 * float(graphene)


def _disc(centre: Tensor, size: int) -> Tensor:
    axis = torch.arange(size) * SETTINGS.pixel_size
    return ((axis - centre[0]) ** 2 + (axis[:, None] - centre[1]) ** 2 < 11.0**2).float()


def test_a_movie_of_noise_holds_no_particle(tmp_path: Path) -> None:
    frames = torch.poisson(torch.full((30, 96, 96), 3.0), generator=torch.Generator().manual_seed(1))
    write_images(tmp_path / "m.mrc", frames, 0.4)
    with pytest.raises(InputError, match="no particle stands out"):
        track_movie(read_movie(tmp_path / "m.mrc"))
