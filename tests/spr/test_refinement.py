"""Poses off the grid and half maps: atoms in known poses, seen exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from common.data import InputError, Poses
from common.fourier import resample_fourier
from common.gridding import transform_and_slopes
from common.resolution import shell_correlation
from common.rotations import geodesic_distance, mean_rotation, random_rotations, rotation_from_vector
from spr.pose_fitting import RefineData, fit_poses, limited, model_and_columns
from spr.refinement import (
    RefineSettings,
    halve,
    image_weights,
    map_of_poses,
    refine,
    shells_of_round,
    shells_to,
    start,
    step,
)
from spr.ring_images import RingImages, ring_vectors
from spr.ring_sampling import SearchGrid, map_box

WINDOW, SIGMA, RADIUS, ANGLES = 20.8, 0.6, 5.0, 48
SHELLS = torch.arange(1.0, 10.0)
BOX = 32
VOXEL = WINDOW / BOX


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def atom_positions() -> Tensor:
    x = torch.randn(9, 3, generator=generator(7), dtype=torch.float64)
    return (
        x / x.norm(dim=1, keepdim=True) * 4 * torch.rand(9, 1, generator=generator(8), dtype=torch.float64) ** (1 / 3)
    )


def map_of(atoms: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    axis = (torch.arange(BOX, dtype=torch.float64) - BOX // 2) * VOXEL
    g = [torch.exp(-((axis - atoms[:, i, None]) ** 2) / (2 * SIGMA**2)) for i in range(3)]
    return torch.einsum("nz,ny,nx->zyx", g[2], g[1], g[0]).to(dtype)


def data_of(rotations: Tensor, shifts: Tensor, *, noise: float = 0.0) -> RefineData:
    """Ring images of the atoms in these poses, exact but for white noise, in two halves."""
    frequencies = SHELLS / WINDOW
    vectors = ring_vectors(frequencies, ANGLES).double()
    views = (atom_positions() @ rotations.double().mT)[..., :2] + shifts.double()[:, None]
    size = (2 * math.pi * SIGMA**2) ** 1.5 / VOXEL**3
    atom = size * torch.exp(-2 * (math.pi * SIGMA) ** 2 * vectors.square().sum(-1))
    phase = -2 * math.pi * torch.einsum("sax,nmx->nmsa", vectors, views)
    transfer = (0.2 + 0.05 * torch.cos(2 * torch.atan2(vectors[..., 1], vectors[..., 0]))).float()
    rings = (atom * torch.polar(torch.ones_like(phase), phase).sum(1)).to(torch.complex64) * transfer
    random = torch.randn(2, *rings.shape[:2], ANGLES // 2, generator=generator(3))
    half = noise * torch.complex(random[0], random[1]) / math.sqrt(2)
    images = RingImages(
        rings + torch.cat((half, half.conj()), -1),
        transfer.expand(len(rings), -1, -1),
        frequencies,
        torch.linspace(0.5, 1.5, len(SHELLS)),
        torch.zeros(len(rings), 2),
        0.5,
    )
    return RefineData(images, torch.arange(len(rings)) % 2, SHELLS, WINDOW, RADIUS, 6.0)


def turned_off(rotations: Tensor, degrees: float, seed: int) -> Tensor:
    axis = torch.randn(len(rotations), 3, generator=generator(seed))
    return rotation_from_vector(math.radians(degrees) * axis / axis.norm(dim=1, keepdim=True)) @ rotations


def moved_off(shifts: Tensor, length: float, seed: int) -> Tensor:
    step = torch.randn(len(shifts), 2, generator=generator(seed))
    return shifts + length * step / step.norm(dim=1, keepdim=True)


def test_derivatives_are_those_of_the_images_of_the_atoms() -> None:
    rotations = random_rotations(3, generator=generator(1))
    shifts = 0.4 * torch.randn(3, 2, generator=generator(2))
    vectors = ring_vectors(SHELLS / WINDOW, ANGLES)[:, : ANGLES // 2].reshape(-1, 2)
    transfer = data_of(rotations, shifts).images.transfer[:, :, : ANGLES // 2].flatten(1)

    def exact(change: Tensor) -> Tensor:
        moved = data_of(rotation_from_vector(change[:3]) @ rotations, shifts + change[3:])
        return moved.images.rings[:, :, : ANGLES // 2].flatten(1)

    transform = transform_and_slopes(map_of(atom_positions()), 9)
    columns = model_and_columns(transform, rotations, shifts, vectors, transfer, WINDOW)[1]
    for i in range(5):
        change = torch.zeros(5)
        change[i] = 5e-3
        difference = (exact(change) - exact(-change)) / 1e-2
        assert float((columns[..., i] - difference).abs().max()) < 3e-3 * float(difference.abs().max())


def test_model_is_the_image_of_the_atoms() -> None:
    rotations = random_rotations(4, generator=generator(1))
    shifts = 0.4 * torch.randn(4, 2, generator=generator(2))
    data = data_of(rotations, shifts)
    vectors = data.images.ring_vectors()[:, : ANGLES // 2].reshape(-1, 2)
    transfer = data.images.transfer[:, :, : ANGLES // 2].flatten(1)
    model, _ = model_and_columns(
        transform_and_slopes(map_of(atom_positions()), 9), rotations, shifts, vectors, transfer, WINDOW
    )
    measured = data.images.rings[:, :, : ANGLES // 2].flatten(1)
    assert float((model - measured).abs().max()) < 3e-3 * float(measured.abs().max())


def test_poses_three_degrees_off_come_back() -> None:
    truth = random_rotations(12, generator=generator(1))
    shifts = 0.4 * torch.randn(12, 2, generator=generator(2))
    data = data_of(truth, shifts)
    transform = transform_and_slopes(map_of(atom_positions()), 9)
    rotations, found, gain = fit_poses(
        transform,
        data,
        torch.arange(12),
        turned_off(truth, 3.0, 5),
        moved_off(shifts, 0.2, 6),
        len(SHELLS),
        steps=5,
        shifts_only=1,
    )
    assert float(geodesic_distance(rotations, truth).max()) < 0.1
    assert float((found - shifts).norm(dim=1).max()) < 0.01
    # the gain over no particle is half the energy of the noise-free image
    energy = (data.images.weights * data.images.rings.abs().square().sum(-1)).sum(1) / 2
    torch.testing.assert_close(gain, energy, rtol=1e-2, atol=0)


def test_the_best_pose_on_the_way_is_kept() -> None:
    truth = random_rotations(10, generator=generator(1))
    data = data_of(truth, torch.zeros(10, 2), noise=1.0)
    transform = transform_and_slopes(map_of(atom_positions()), 9)
    far = turned_off(truth, 25.0, 5)  # where linear steps mislead
    gains = [
        fit_poses(transform, data, torch.arange(10), far, torch.zeros(10, 2), len(SHELLS), steps=steps, shifts_only=0)[
            2
        ]
        for steps in (0, 1, 4)
    ]
    assert bool((gains[1] >= gains[0]).all())
    assert bool((gains[2] >= gains[1]).all())


def test_the_first_steps_move_the_shift_alone() -> None:
    truth = random_rotations(5, generator=generator(1))
    data = data_of(truth, torch.zeros(5, 2))
    transform = transform_and_slopes(map_of(atom_positions()), 9)
    off = turned_off(truth, 2.0, 5)
    rotations, shifts, _ = fit_poses(
        transform, data, torch.arange(5), off, torch.full((5, 2), 0.15), len(SHELLS), steps=2, shifts_only=2
    )
    assert torch.equal(rotations, off)
    assert float(shifts.norm(dim=1).max()) < 0.1


def test_refinement_improves_map_and_poses_together() -> None:
    n = 80
    truth = random_rotations(n, generator=generator(1))
    shifts = 0.3 * torch.randn(n, 2, generator=generator(2))
    data = data_of(truth, shifts, noise=0.2)
    off = Poses(turned_off(truth, 3.0, 5), moved_off(shifts, 0.2, 6))
    grid = SearchGrid(BOX, VOXEL, RADIUS, 8.0, SHELLS, 100)
    settings = RefineSettings(rounds=4, finest=2.3)
    first = map_of_poses(data.images, grid, off, settings)
    refined = refine(first, off, data, settings)
    # all poses at once may turn and move together with the map: take the common motion out
    rotations, moved = refined.poses.rotations, refined.poses.shifts
    common = rotations.mT @ truth
    error = geodesic_distance(rotations @ mean_rotation(common), truth)
    assert float(error.median()) < 2.4  # slowly: each pose helped to make the map it is held against
    assert float((moved - shifts).norm(dim=1).median()) < 0.05
    assert torch.equal(refined.half, data.half)
    assert float(refined.fsc.correlation[1:9].min()) > 0.9
    box = map_box(9.0)
    exact, before = (resample_fourier(m, box, 3) for m in (map_of(atom_positions()), first))
    agreements = [float(shell_correlation(m, exact)[1:9].mean()) for m in (before, refined.volume.values)]
    assert agreements[1] > agreements[0]
    assert refined.volume.voxel_size == pytest.approx(WINDOW / box)


def test_halves_never_meet() -> None:
    """Whatever happens to the images of one half, the other half's map, poses and weights keep every bit."""
    n = 40
    truth = random_rotations(n, generator=generator(1))
    data = data_of(truth, torch.zeros(n, 2), noise=0.5)
    state = start(map_of(atom_positions()), Poses(turned_off(truth, 2.0, 5), torch.zeros(n, 2)), data, BOX)
    settings = RefineSettings(rounds=2, finest=2.3)
    rings = data.images.rings.clone()
    rings[data.half == 1] = 0.2 * rings[data.half == 1].flip(1)
    other = replace(data, images=replace(data.images, rings=rings))
    for _ in range(2):
        mine, changed = step(state, data, settings), step(state, other, settings)
        assert torch.equal(mine.values[0], changed.values[0])
        assert not torch.equal(mine.values[1], changed.values[1])
        for name in ("rotations", "shifts", "gain", "weights"):
            assert torch.equal(getattr(mine, name)[data.half == 0], getattr(changed, name)[data.half == 0]), name
        state = replace(mine, values=torch.stack((mine.values[0], changed.values[1])))


def test_few_images_whose_shards_lie_in_one_half() -> None:
    truth = random_rotations(18, generator=generator(1))
    data = data_of(truth, torch.zeros(18, 2))
    state = start(map_of(atom_positions()), Poses(truth, torch.zeros(18, 2)), data, BOX)
    after = step(state, data, RefineSettings(rounds=1, finest=2.3))
    assert float(geodesic_distance(after.rotations, truth).max()) < 0.1
    assert bool(torch.isfinite(after.values).all())


def test_images_that_no_pose_explains_weigh_nothing() -> None:
    gain = torch.tensor([100.0, 110.0, 90.0, 60.0, 40.0, 20.0, -30.0, 105.0, 100.0])
    weights = image_weights(gain)
    assert bool((weights[[0, 1, 2, 7, 8]] == 1).all())
    assert bool((weights[[5, 6]] == 0).all())
    assert 0 < float(weights[4]) < float(weights[3]) < 1
    torch.testing.assert_close(image_weights(7 * gain), weights)  # dose does not matter


def test_random_halves_are_even_and_belong_to_the_seed() -> None:
    data = data_of(random_rotations(21, generator=generator(1)), torch.zeros(21, 2))
    grid = SearchGrid(BOX, VOXEL, RADIUS, 8.0, SHELLS, 100)
    halves = [halve(data.images, SHELLS, grid, seed=seed).half for seed in (0, 0, 1)]
    assert sorted(torch.bincount(halves[0]).tolist()) == [10, 11]
    assert torch.equal(halves[0], halves[1])
    assert not torch.equal(halves[0], halves[2])


def test_resolution_grows_to_the_finest_ring() -> None:
    data = data_of(random_rotations(2, generator=generator(1)), torch.zeros(2, 2))
    counts = [shells_of_round(data, RefineSettings(rounds=3), i) for i in range(3)]
    assert counts == [7, 8, 9]
    grid = SearchGrid(BOX, VOXEL, RADIUS, 8.0, torch.arange(2.0, 7.0), 100)
    assert shells_to(2.6, grid).tolist() == [2, 3, 4, 5, 6, 7, 8]  # 20.8 / 2.6 = 8
    assert shells_to(10.0, grid).tolist() == [2, 3, 4, 5, 6]  # never fewer than the search's


def test_limited_cuts_long_vectors_only() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(limited(vectors, 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="0 rounds of"):
        RefineSettings(rounds=0)
    with pytest.raises(InputError, match="finest spacing is -1"):
        RefineSettings(finest=-1.0)
