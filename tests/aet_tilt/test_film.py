"""A film that goes on past its images: what is not measured says nothing, and the atoms in the middle are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.spatial import cKDTree

from aet_tilt.film import FilmSettings, about_one_axis, common_columns, film_problem
from aet_tilt.pipeline import reconstruct, reconstruct_volume
from aet_tilt.preprocessing import preprocess
from aet_tilt.reconstruction.methods import ReconstructionSettings
from aet_tilt.reconstruction.operator import is_single_axis
from aet_tilt.reconstruction.problem import make_problem, row_band
from aet_tilt.reconstruction.real_space import RealSpaceSettings
from aet_tilt.settings import Settings
from common.atoms.spot_image import SpotParameters, predict
from common.data import ImageStack, InputError, Poses
from common.fourier import crop_or_pad
from common.rotations import geodesic_distance, rotation_from_vector

PIXEL, SIDE, HEIGHT = 0.4, 48, 28


def _film(seed: int = 0) -> tuple[np.ndarray, ImageStack, Poses]:
    """Gold without order, 12 angstrom thick and 80 wide, in images of 19 x 11 angstrom; Poisson counts."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    tried = rng.uniform([-40, -9, -6], [40, 9, 6], (6000, 3))
    sites: list[np.ndarray] = []
    for point in tried:
        if not sites or np.min(np.linalg.norm(np.array(sites) - point, axis=1)) > 2.5:
            sites.append(point)
    positions = torch.from_numpy(np.array(sites))
    angles = torch.linspace(-63, 63, 33, dtype=torch.float64)
    poses = Poses.from_tilt_angles(angles)
    ones = torch.ones(len(positions), dtype=torch.float64)
    m = len(poses)
    parameters = SpotParameters(
        positions, 900 * ones, 9 * ones, poses.rotations, poses.shifts, ones[:m], 0 * ones[:m], 20 * ones[:m, None]
    )
    wide = predict(parameters, ImageStack(torch.zeros(m, 4 * SIDE, 4 * SIDE, dtype=torch.float64), PIXEL))
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[SIDE // 2 - HEIGHT // 2 : SIDE // 2 + HEIGHT // 2] = True
    images = torch.poisson(crop_or_pad(wide, SIDE, 2), generator).float()
    images = torch.where(inside, images, images[:, inside].median())
    single = Poses(poses.rotations.float(), poses.shifts.float())
    return positions.numpy(), ImageStack(images, PIXEL, measured=inside), single


def _quick() -> Settings:
    return Settings(elements=("Au",), film=FilmSettings(iterations=40))


def _matched(found: Atoms, truth: np.ndarray) -> tuple[float, np.ndarray]:
    """Share of the true atoms well inside of the images that are found, and the errors (k, 3) of these."""
    core = truth[(np.abs(truth) < [7.0, 4.0, 9.0]).all(1)]
    away, index = cKDTree(found.positions).query(core)
    near = away < 0.7
    return float(near.mean()), found.positions[index[near]] - core[near]


def test_atoms_of_a_film_are_found_with_honest_sigmas() -> None:
    truth, stack, poses = _film()
    result = reconstruct(stack, poses, _quick())
    assert result.atoms is not None
    assert result.maps is not None
    share, errors = _matched(result.atoms, truth)
    assert share >= 0.97
    sigma = float(np.median(result.atoms.arrays["position_sigma"]))
    assert 0.4 < np.sqrt((errors**2).mean()) / sigma < 1.3
    assert result.metrics["held_out_r1"] < 0.3
    assert result.metrics["held_out_r1_middle"] < result.metrics["held_out_r1"]  # no rays through what few images show
    assert any("film" in note for note in result.notes)
    assert result.maps.volume.box_size == 2 * SIDE  # wider than the images


@pytest.mark.parametrize(("degrees", "taken"), [(0.1, True), (1.0, False)])
def test_poses_that_lean_a_little_are_taken_for_tilts(degrees: float, taken: bool) -> None:
    """Euler triplets that refinement has moved by tenths of a degree, but not those of another axis."""
    _, stack, tilts = _film()
    vectors = torch.deg2rad(degrees * torch.randn(len(tilts), 3, generator=torch.Generator().manual_seed(0)))
    leaning = Poses(rotation_from_vector(vectors) @ tilts.rotations, tilts.shifts)
    clean = preprocess(stack, leaning)
    found = about_one_axis(clean)
    assert is_single_axis(found.poses) is taken
    assert ("taken for these" if taken else "--tilt-axis") in found.notes[-1]
    if taken:
        off = geodesic_distance(found.poses.rotations, tilts.rotations)
        assert float(off.max()) == pytest.approx(float(torch.rad2deg(vectors[:, 1].abs().max())), abs=0.02)
        assert film_problem(found.stack, found.poses, FilmSettings(iterations=1)).images.shape[1] == HEIGHT
    else:
        torch.testing.assert_close(found.poses.rotations, leaning.rotations)
    assert about_one_axis(preprocess(stack, tilts)).notes == preprocess(stack, tilts).notes


def test_columns_that_all_images_share_end_with_the_highest_tilt() -> None:
    _, stack, poses = _film()
    columns = common_columns(film_problem(stack, poses, FilmSettings()))
    assert columns == slice(SIDE - 10, SIDE + 10)  # 48 columns in a box of 96, half of them times cos(63 degrees)


def test_room_beside_the_images_predicts_those_left_out_better() -> None:
    """Without it the matter that only high tilts see has to go where there is none."""
    _, stack, poses = _film(1)
    errors = []
    for room in (1.0, 2.0):
        found = reconstruct(stack, poses, Settings(elements=("Au",), film=FilmSettings(room=room, iterations=20)))
        errors.append(found.metrics["held_out_r1"])
    assert errors[1] < errors[0]


def test_pixels_that_were_not_measured_change_nothing() -> None:
    _, stack, poses = _film()
    other = ImageStack(torch.where(stack.inside, stack.images, 1e4), PIXEL, measured=stack.inside)
    found = []
    for images in (stack, other):
        maps = reconstruct_volume(images, poses, Settings(film=FilmSettings(iterations=5))).maps
        assert maps is not None
        found.append(maps.volume.values)
    assert torch.equal(found[0], found[1])


def test_the_windowed_projector_has_its_adjoint() -> None:
    _, stack, poses = _film()
    problem = row_band(make_problem(stack, poses), HEIGHT)
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(problem.support.shape, generator=generator)
    images = torch.randn(problem.images.shape, generator=generator)
    assert problem.images.shape[1] == HEIGHT
    forward = (problem.operator.project(values).double() * images).sum()
    backward = (problem.operator.backproject(images).double() * values).sum()
    assert float(forward) == pytest.approx(float(backward), rel=1e-4)


def test_methods_for_isolated_particles_are_refused() -> None:
    _, stack, poses = _film()
    with pytest.raises(InputError, match="genfire needs an isolated particle"):
        reconstruct(stack, poses, Settings(elements=("Au",), method="genfire"))


def test_other_methods_take_the_same_room() -> None:
    _, stack, poses = _film()
    rays = ReconstructionSettings(real_space=RealSpaceSettings(iterations=15))
    found = reconstruct(stack, poses, Settings(elements=("Au",), method="sirt", reconstruction=rays))
    assert any(note.endswith("sirt, in a volume wider than the images") for note in found.notes)
    assert found.atoms is not None
    assert len(found.atoms) > 20
