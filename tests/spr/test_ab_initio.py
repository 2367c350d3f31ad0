"""A map from nothing: the band, the schedule, and small searches on atoms that are known."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from ase import Atoms

from common.data import InputError
from common.noise import estimate_noise, particle_radius, whiten
from common.rotations import geodesic_distance, mean_rotation
from common.simulation import SimulatedData, simulate_images
from spr.ab_initio import SearchSettings, effective_poses, prepare, search, start, trial_shifts, volume_of
from spr.orientation_search import views_of
from spr.pose_assignment import assign
from spr.ring_images import RingImages
from spr.ring_sampling import SearchGrid, disc_mask, map_box, signal_rings, signal_to_noise

PIXEL = 0.4


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cluster(n: int = 22) -> Atoms:
    """A compact cluster without symmetry, atoms at least 2.6 angstrom apart."""
    chosen = torch.zeros(1, 3)
    random = generator(4)
    while len(chosen) < n:
        tried = 5.0 * (2 * torch.rand(4000, 3, generator=random) - 1)
        free = tried[(tried[:, None] - chosen).norm(dim=2).amin(1) > 2.6]
        chosen = torch.cat((chosen, free[free.norm(dim=1).argmin()][None]))
    return Atoms(f"Au{n}", positions=chosen.numpy())


@pytest.fixture(scope="module")
def data() -> SimulatedData:
    return simulate_images(
        cluster(), 150, box_size=48, pixel_size=PIXEL, snr=4.0, shift_sigma=0.4, generator=generator(1)
    )


SETTINGS = SearchSettings(iterations=30, images_per_iteration=60, effective_poses=500.0, final_effective_poses=1.5)


@pytest.fixture(scope="module")
def prepared(data: SimulatedData) -> tuple[RingImages, SearchGrid]:
    noise, extent = estimate_noise(data.stack), particle_radius(data.stack)
    white = whiten(data.stack, noise)
    return prepare(data.stack, white, noise, radius=extent.radius, shift_spread=extent.shift_spread, settings=SETTINGS)


def test_small_search_finds_the_poses(data: SimulatedData, prepared: tuple[RingImages, SearchGrid]) -> None:
    """Up to one rotation and the hand."""
    images, grid = prepared
    finer = replace(grid, directions=400)  # to see poses to better than the search needs
    best = assign(search(images, grid, SETTINGS, seed=0), images, finer, SETTINGS, seed=0)
    errors = []
    for flip in (torch.eye(3), torch.diag(torch.tensor([-1.0, -1.0, 1.0]))):
        rotations = flip @ best.poses.rotations
        frames = rotations.mT @ data.poses.rotations
        central = geodesic_distance(frames, frames[:, None]).median(1).values.argmin()
        near = geodesic_distance(frames, frames[central]) < 20
        errors.append(geodesic_distance(rotations @ mean_rotation(frames[near]), data.poses.rotations))
    error = min(errors, key=lambda e: float(e.median()))
    assert float((error < 10).float().mean()) > 0.9
    assert float((best.poses.shifts - data.poses.shifts).square().mean().sqrt()) < 0.2


def test_band_holds_the_reflections_of_the_atoms(data: SimulatedData) -> None:
    """Neighbours are 2.6 to 3 angstrom apart, so that projected distances reflect around 1/2.3 1/angstrom."""
    white = whiten(data.stack, estimate_noise(data.stack)).images
    window = 24.0
    strength = signal_to_noise(white, PIXEL, 7.0, torch.arange(1.0, 20.0) / window)
    atomic = torch.arange(1.0, 20.0) / window > 0.25
    strongest = 1.0 + float(torch.where(atomic, strength, -1.0).argmax())
    with_outlines, atoms_only = (signal_rings(white, PIXEL, 7.0, window, outlines) for outlines in (True, False))
    for rings in (with_outlines, atoms_only):
        assert bool((rings.diff() > 0).all())
        assert strongest in rings.tolist()
        assert window / float(rings[-1]) < 2.6
    assert with_outlines.tolist()[: len(with_outlines) - len(atoms_only)] == [
        ring for ring in with_outlines.tolist() if ring < float(atoms_only[0])
    ]
    assert 1 / 3.4 < strongest / window < 1 / 1.8


def test_wide_band_goes_on_to_fine_reflections_beyond_a_gap(data: SimulatedData) -> None:
    """Fringes of 1.2 angstrom, weaker than the strongest ring, with nothing before them."""
    white = whiten(data.stack, estimate_noise(data.stack)).images
    window = 24.0
    x = (torch.arange(48) - 24) * PIXEL
    phase = 2 * torch.pi * torch.rand(len(white), 1, 1, generator=generator(7))
    fringed = white + 0.5 * torch.cos(2 * torch.pi * x / 1.2 + phase)
    plain, narrow, wide = (
        signal_rings(images, PIXEL, 7.0, window, outlines=False, wide=wide).tolist()
        for images, wide in ((white, True), (fringed, False), (fringed, True))
    )
    assert narrow[-1] < 18
    assert plain[-1] < 18
    assert 19 <= wide[-1] <= 21
    assert wide == [float(ring) for ring in range(int(narrow[0]), int(wide[-1]) + 1)]


def test_noise_has_no_signal_and_a_wrong_scale_is_refused() -> None:
    white = torch.randn(200, 40, 40, generator=generator(0))
    ratio = signal_to_noise(white, PIXEL, 6.0, torch.tensor([0.1, 0.3, 0.6]))
    assert float(ratio.max()) < 0.1
    with pytest.raises(InputError, match="no signal above their noise"):
        signal_rings(white, 4.0, 60.0, 160.0, outlines=True)  # Nyquist is at 8 angstrom


def test_effective_poses_fall_geometrically() -> None:
    settings = SearchSettings(iterations=11, images_per_iteration=5, effective_poses=1000.0, final_effective_poses=2.0)
    numbers = [effective_poses(settings, i) for i in range(11)]
    assert numbers[0] == pytest.approx(1000)
    assert numbers[-1] == pytest.approx(2)
    ratios = [b / a for a, b in pairwise(numbers)]
    assert ratios == pytest.approx([ratios[0]] * 10)
    assert ratios[0] < 1


def test_trial_shifts_are_a_cross_around_each_centre() -> None:
    trials = trial_shifts(torch.tensor([[1.0, -2.0], [0.0, 0.0]]), 0.5)
    assert trials.shape == (2, 5, 2)
    assert trials[0].tolist() == [[1, -2], [1.5, -2], [0.5, -2], [1, -1.5], [1, -2.5]]
    torch.testing.assert_close(trials[1].sum(0), torch.zeros(2))


def test_disc_is_one_inside_and_fades_over_two_angstrom() -> None:
    disc = disc_mask(41, 5.0, 0.5)
    radius = (torch.arange(41) - 20).abs() * 0.5
    row = disc[20]
    assert bool((row[radius <= 5] == 1).all())
    assert bool((row[radius >= 7] == 0).all())
    assert float(row[32]) == pytest.approx(0.5)  # at 6 angstrom


def test_particle_that_lies_still_is_searched_with_finite_priors(data: SimulatedData) -> None:
    noise = estimate_noise(data.stack)
    few = torch.arange(20)
    images, _ = prepare(
        data.stack[few],
        whiten(data.stack, noise)[few],
        noise[few],
        radius=5.0,
        shift_spread=0.0,
        settings=SETTINGS,
    )
    assert images.centre_sigma > 0


def test_first_map_has_the_power_of_the_images_and_lies_in_its_support(
    prepared: tuple[RingImages, SearchGrid],
) -> None:
    images, grid = prepared
    first = start(images, grid, SETTINGS, seed=0)
    assert first.iteration == 0
    assert not first.done
    axis = (torch.arange(grid.box_size) - grid.box_size // 2) * grid.voxel_size
    distance = torch.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    assert float(first.values[distance > grid.radius + 1.5 * grid.voxel_size + 0.1].abs().max()) == 0
    frames = torch.eye(3)[None]
    views = views_of(first.values, frames, grid.shells, images.rings.shape[-1], images.weights)
    made = float((views.power[:, 0] * images.transfer.square().mean((0, 2))).sum())
    measured = images.rings.abs().square().mean((0, 2)) - images.noise_power
    wanted = float((measured.clamp(min=0) * images.weights).sum()) * images.rings.shape[-1]
    assert 0.2 < made / wanted < 5  # one view of many
    assert volume_of(first, grid).voxel_size == grid.voxel_size


def test_box_of_a_map_is_even_and_holds_its_shells() -> None:
    for shell in (5.0, 9.0, 13.0, 22.0):
        assert map_box(shell) % 2 == 0
        assert shell < (map_box(shell) - 1) / 2


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="1 iterations"):
        SearchSettings(iterations=1)
    with pytest.raises(InputError, match=r"from 2\.0 to 5\.0"):
        SearchSettings(effective_poses=2.0, final_effective_poses=5.0)
    with pytest.raises(InputError, match=r"to 0\.5"):
        SearchSettings(final_effective_poses=0.5)
