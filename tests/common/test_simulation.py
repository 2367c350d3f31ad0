"""Simulated data keep what was asked of them: SNR, dose, truth, seed."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.spatial.distance import pdist, squareform

from common.data import InputError
from common.simulation import Imaging, gold_cluster, simulate_images
from common.specimens import CARBON_DENSITY, CARBON_DISTANCE, amorphous_carbon


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def cluster():
    return gold_cluster(40, generator=seeded(1))


def test_gold_cluster_is_compact_with_metallic_distances():
    atoms = gold_cluster(68, generator=seeded(0))
    distances = squareform(pdist(atoms.positions)) + 99 * np.eye(68)
    nearest = distances.min(1)
    assert nearest.min() > 2.65
    assert nearest.max() < 3.0
    assert ((distances < 3.5).sum(1) >= 3).all()
    assert np.linalg.norm(atoms.positions, axis=1).max() < 8.5
    np.testing.assert_allclose(atoms.positions.mean(0), 0, atol=1e-9)
    # no symmetry: no other atom sees the same distances
    fingerprints = np.sort(distances, axis=1)[:, :-1]
    assert pdist(fingerprints, "chebyshev").min() > 0.01


def test_same_seed_same_data(cluster):
    again = gold_cluster(40, generator=seeded(1))
    np.testing.assert_array_equal(cluster.positions, again.positions)
    for request in ({"snr": 0.5}, {"model": "phase_object", "dose": 300.0, "carbon_thickness": 10.0}):
        one, two = (simulate_images(cluster, 5, box_size=48, generator=seeded(2), **request) for _ in range(2))
        assert torch.equal(one.stack.images, two.stack.images)
        assert torch.equal(one.poses.rotations, two.poses.rotations)
        other = simulate_images(cluster, 5, box_size=48, generator=seeded(3), **request)
        assert not torch.equal(one.stack.images, other.stack.images)


def test_batch_size_does_not_change_the_images(cluster):
    request = {"model": "phase_object", "dose": 300.0, "carbon_thickness": 10.0, "box_size": 48}
    one, two = (
        simulate_images(cluster, 5, batch_size=size, generator=seeded(4), **request).stack.images for size in (2, 64)
    )
    # intensities differ in the last bit, so a count may, once in a while
    assert (one != two).float().mean() < 1e-3


@pytest.mark.parametrize("snr", [0.1, 1.0])
def test_snr_is_what_was_asked(cluster, snr):
    clean = simulate_images(cluster, 50, generator=seeded(5))
    noisy = simulate_images(cluster, 50, snr=snr, generator=seeded(5))
    noise = noisy.stack.images - clean.stack.images
    assert torch.equal(clean.poses.shifts, noisy.poses.shifts)
    radius = (np.linalg.norm(cluster.positions, axis=1).max() + 1.2) / 0.35
    axis = torch.arange(80.0) - 40
    centre = clean.poses.shifts / 0.35
    inside = torch.stack([(axis[:, None] - y) ** 2 + (axis - x) ** 2 < radius**2 for x, y in centre])
    assert float(clean.stack.images[inside].var() / noise.var()) == pytest.approx(snr, rel=0.02)


def test_atoms_of_a_projection_lie_where_pose_and_shift_put_them():
    atoms = Atoms("Au3", positions=[[4.0, 0, 0], [-1, 3.0, 0], [-3, -3, 0.0]])
    data = simulate_images(atoms, 6, box_size=64, generator=seeded(6))
    views = data.poses.rotations @ torch.tensor(data.atoms.positions).float().T
    positions = views[:, :2].transpose(1, 2) + data.poses.shifts[:, None]
    yx = torch.stack((positions[..., 1], positions[..., 0]), -1) / 0.35 + 32
    for image, points in zip(data.stack.images, yx.round().long(), strict=True):
        assert (image[points[:, 0], points[:, 1]] > 0.75).all()
    total = data.stack.images.sum((1, 2)) * 0.35**2
    assert total.tolist() == pytest.approx([3 * 2 * math.pi * 0.4**2] * 6, rel=1e-3)


def test_counts_follow_the_dose(cluster):
    data = simulate_images(cluster, 10, model="phase_object", dose=200.0, generator=seeded(7))
    images = data.stack.images
    assert torch.equal(images, images.round())
    border = images[:, :12]
    assert border.mean().item() == pytest.approx(200 * 0.35**2, rel=0.01)
    assert border.var().item() == pytest.approx(200 * 0.35**2, rel=0.05)


def test_optics_are_recorded_within_their_range(cluster):
    imaging = Imaging(voltage_kv=200.0, spherical_aberration_mm=0.01, defocus_range=(20.0, 40.0))
    optics = simulate_images(cluster, 30, box_size=48, model="phase_object", imaging=imaging, generator=seeded(8))
    defocus = optics.stack.optics.defocus
    assert float(defocus[:, :2].min()) >= 20
    assert float(defocus[:, :2].max()) <= 40
    assert defocus[:, 0].std() > 3
    assert optics.stack.optics.voltage_kv.unique().tolist() == [200.0]


def test_carbon_has_its_density_and_no_overlaps():
    film = amorphous_carbon(20.0, 15.0, generator=seeded(9)).numpy()
    assert len(film) == round(CARBON_DENSITY * 20 * 20 * 15)
    difference = film[:, None] - film
    difference[..., :2] -= 20 * np.round(difference[..., :2] / 20)
    distance = np.linalg.norm(difference, axis=-1) + 99 * np.eye(len(film))
    assert distance.min() >= CARBON_DISTANCE


def test_carbon_is_another_film_under_each_image(cluster):
    bare = simulate_images(cluster, 2, model="phase_object", generator=seeded(10)).stack.images
    film = simulate_images(cluster, 2, model="phase_object", carbon_thickness=20.0, generator=seeded(10)).stack.images
    assert film[:, :12].std() > 3 * bare[:, :12].std()
    corners = film[:, :12].flatten(1)
    assert abs(float(torch.corrcoef(corners)[0, 1])) < 0.2


def test_requests_that_make_no_sense_are_refused(cluster):
    for request, words in (
        ({"model": "kinematic"}, "expected one of"),
        ({"snr": 0.0}, "the SNR is 0"),
        ({"dose": 100.0}, "expected an SNR"),
        ({"model": "phase_object", "snr": 1.0}, "expected a dose"),
        ({"box_size": 16}, "larger box"),
        ({"pixel_size": math.nan}, "pixel size is nan"),
    ):
        with pytest.raises(InputError, match=words):
            simulate_images(cluster, 3, generator=seeded(0), **request)
    with pytest.raises(InputError, match="at least one of each"):
        simulate_images(cluster, 0, generator=seeded(0))
    with pytest.raises(InputError, match="at least 2"):
        gold_cluster(1, generator=seeded(0))
