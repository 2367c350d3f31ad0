"""Simulated tilt series: brightness, counting noise, poses as stated, and the crystal that they show."""

import ase
import numpy as np
import pytest
import torch

from common.atoms.analysis import analyse
from common.atoms.geometry import nearest_neighbour_distances
from common.data import InputError, Poses
from common.simulation_tilts import AnnularImaging, box_of, project_atoms, simulate_tilts
from common.specimens import twinned_crystal


def series(atoms, seed=0, **changed):
    given = {"box_size": 64, "pixel_size": 0.5, "generator": torch.Generator().manual_seed(seed)} | changed
    return simulate_tilts(atoms, torch.linspace(-60, 60, 9), **given)


@pytest.fixture(scope="module")
def crystal():
    return twinned_crystal(150, generator=torch.Generator().manual_seed(3))


def test_the_crystal_has_one_twin_plane(crystal):
    assert nearest_neighbour_distances(crystal) == pytest.approx(4.08 / np.sqrt(2))
    _, findings = analyse(crystal)
    assert len(findings.grains.lattices) == 2
    assert [plane.kind for plane in findings.planes] == ["twin"]
    assert findings.boundaries[0].angle == pytest.approx(60, abs=0.1)


def test_brightness_goes_with_the_atomic_number(crystal):
    two = ase.Atoms("AuC", positions=[[-6, 0, 0], [6, 0, 0]])
    image = project_atoms(
        two, Poses.from_tilt_angles(torch.zeros(1)), box_size=64, pixel_size=0.5, imaging=AnnularImaging()
    )[0]
    left, right = float(image[:, :32].sum()), float(image[:, 32:].sum())
    assert left / right == pytest.approx((79 / 6) ** 1.7, rel=1e-6)
    assert left * 0.25 == pytest.approx(79**1.7, rel=1e-4)  # atoms are drawn at the pixels' centres
    with pytest.raises(InputError, match="unknown species"):
        project_atoms(
            ase.Atoms("X", positions=[[0, 0, 0]]), Poses.from_tilt_angles(torch.zeros(1)),
            box_size=64, pixel_size=0.5, imaging=AnnularImaging(),
        )  # fmt: skip


def test_counts_are_poisson_about_what_is_expected(crystal):
    expected = series(crystal, noise=False).stack.images.double()
    counts = series(crystal).stack.images.double()
    assert float(expected.max()) == pytest.approx(202.0, rel=1e-5)
    assert torch.equal(counts, counts.round())
    score = (counts - expected) / expected.sqrt()
    assert abs(float(score.mean())) < 5 / score.numel() ** 0.5
    assert float(score.square().mean()) == pytest.approx(1, abs=0.03)


def test_images_are_those_of_the_true_poses(crystal):
    data = series(crystal, shift_sigma=0.4, angle_sigma=1.0, noise=False)
    shown = project_atoms(crystal, data.poses, box_size=64, pixel_size=0.5, imaging=AnnularImaging())
    ratio = (data.stack.images.double() - 2.0) / shown.clamp(min=1e-3 * float(shown.max()))
    bright = shown > 0.1 * shown.max()
    assert float(ratio[bright].std() / ratio[bright].mean()) < 1e-4
    torch.testing.assert_close(
        data.nominal.rotations, Poses.from_tilt_angles(torch.linspace(-60, 60, 9)).rotations.double()
    )
    assert not torch.allclose(data.poses.rotations, data.nominal.rotations, atol=1e-4)


def test_the_seed_decides(crystal):
    first, again, other = (series(crystal, seed=seed).stack.images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_cannot_be_simulated_is_refused(crystal):
    with pytest.raises(InputError, match="larger box"):
        series(crystal, box_size=16)
    with pytest.raises(InputError, match="brightest is -1"):
        AnnularImaging(brightest=-1)
    with pytest.raises(InputError, match="expected at least 2"):
        twinned_crystal(1, generator=torch.Generator())
    with pytest.raises(InputError, match="'Xx'"):
        twinned_crystal(9, element="Xx", generator=torch.Generator())
    assert box_of(crystal, pixel_size=0.5) % 2 == 0
