import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from ase.cluster import Icosahedron, Octahedron
from ase.optimize import FIRE
from scipy.spatial import cKDTree

from common.atoms.tracing import TracingSettings, find_atoms, trace
from common.data import InputError, Volume

BANDS = [(5.5, 2.1), (2.8, 1.3), (math.inf, 1.3)]
GOLD = TracingSettings(element="Au")


def amorphous_gold(n, seed):
    """A relaxed (EMT) random packing: no symmetry, no lattice."""
    rng = np.random.default_rng(seed)
    radius = 2.88 * (n / 0.74) ** (1 / 3) / 2 * 1.02
    places = np.empty((0, 3))
    while len(places) < n:
        trial = rng.uniform(-radius, radius, 3)
        free = not len(places) or np.linalg.norm(places - trial, axis=1).min() > 2.0
        if np.linalg.norm(trial) < radius and free:
            places = np.vstack([places, trial])
    atoms = Atoms(f"Au{n}", positions=places)
    atoms.calc = EMT()
    FIRE(atoms, logfile=None).run(fmax=0.3, steps=120)
    return atoms.positions - atoms.positions.mean(0)


def bare_map(positions, *, band, box_size, voxel_size, sigma, heights):
    """Gaussian atoms between two resolutions (soft edges), exactly from the structure factor."""
    f, half = np.fft.fftfreq(box_size, voxel_size), np.fft.rfftfreq(box_size, voxel_size)
    k = np.sqrt(f[:, None, None] ** 2 + f[None, :, None] ** 2 + half**2)
    waves = [np.exp(-2j * np.pi * np.outer(positions[:, a], half if a == 0 else f)) for a in range(3)]
    structure = np.einsum("nz,ny,nx->zyx", waves[2] * heights[:, None], waves[1], waves[0], optimize=True)
    window = 1 / (1 + np.exp(np.clip((k - 1 / band[1]) / 0.006, -50, 50)))
    if math.isfinite(band[0]):
        window /= 1 + np.exp(np.clip((1 / band[0] - k) / 0.006, -50, 50))
    image = np.fft.irfftn(
        structure * np.exp(-2 * np.pi**2 * sigma**2 * k**2) * window, s=(box_size,) * 3, axes=(0, 1, 2)
    )
    return np.fft.fftshift(image), k, window


def render(positions, band, *, noise=0.0, seed=0, box_size=64, voxel_size=0.4, sigma=0.4, heights=None):
    """A map of atoms in coloured noise (rising as k^2 in the band), rms `noise` of the median height at an atom."""
    heights = np.ones(len(positions)) if heights is None else heights
    image, k, window = bare_map(
        positions, band=band, box_size=box_size, voxel_size=voxel_size, sigma=sigma, heights=heights
    )
    i = np.rint(positions / voxel_size).astype(int) + box_size // 2
    peak = np.median(image[i[:, 2], i[:, 1], i[:, 0]])
    white = np.random.default_rng(seed).normal(size=image.shape)
    coloured = np.fft.irfftn(np.fft.rfftn(white) * window * (0.1 + k**2), s=image.shape, axes=(0, 1, 2))
    return Volume(torch.tensor(image + noise * peak * coloured / coloured.std(), dtype=torch.float32), voxel_size)


def errors(atoms, truth):
    """Distances (n,) of the true atoms to their nearest traced one, after a check that the counts agree."""
    assert len(atoms) == len(truth)
    return cKDTree(atoms.positions).query(truth)[0]


@pytest.fixture(scope="module")
def cluster():
    return amorphous_gold(68, seed=7)


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize(("noise", "largest"), [(0.0, 0.02), (0.05, 0.3), (0.1, 0.5)])
def test_all_atoms_and_no_others(cluster, band, noise, largest):
    result = find_atoms(render(cluster, band, noise=noise, seed=3), GOLD)
    assert result.determined, result.reason
    assert errors(result.atoms, cluster).max() < largest
    assert result.gap > 0.1


@pytest.mark.parametrize("band", BANDS)
def test_the_bond_length_comes_from_the_map_when_no_element_is_given(cluster, band):
    atoms = trace(render(cluster, band, noise=0.05))
    assert errors(atoms, cluster).max() < 0.35
    assert set(atoms.get_chemical_symbols()) == {"X"}


@pytest.mark.parametrize("n", [13, 30, 147])
def test_any_count(n):
    truth = Icosahedron("Au", 4).positions
    truth = truth[np.argsort(np.linalg.norm(truth, axis=1))[:n]] + np.random.default_rng(n).normal(size=(n, 3)) * 0.1
    result = find_atoms(render(truth, BANDS[0], noise=0.06, seed=n), GOLD)
    assert result.determined
    assert errors(result.atoms, truth).max() < 0.45


def test_crystal_off_the_centre_of_an_odd_box():
    truth = Octahedron("Au", 5, 1).positions + np.array([2.3, -1.1, 0.7])
    atoms = trace(render(truth, BANDS[1], noise=0.05, box_size=65), GOLD)
    assert errors(atoms, truth).max() < 0.3


def test_weak_surface_atoms_are_kept_and_heights_measured(cluster):
    heights = np.where(np.arange(len(cluster)) % 4 == 0, 0.65, 1.0)
    atoms = trace(render(cluster, BANDS[1], noise=0.03, heights=heights), GOLD)
    nearest = cKDTree(atoms.positions).query(cluster)[1]
    assert len(atoms) == len(cluster)
    np.testing.assert_allclose(atoms.arrays["peak_height"][nearest], heights, atol=0.15)


def test_an_isolated_peak_far_from_the_particle_is_not_an_atom(cluster):
    small = cluster[np.linalg.norm(cluster, axis=1) < 5.5]
    apart = np.vstack([small, [[9.0, 9.0, 9.0]]])
    result = find_atoms(render(apart, BANDS[0], noise=0.03), GOLD)
    assert errors(result.atoms, small).max() < 0.3
    assert result.rejected_heights[0] > 0.5


def test_score_is_height_over_its_noise(cluster):
    found = [find_atoms(render(cluster, BANDS[1], noise=0.08, seed=s), GOLD) for s in range(3)]
    for result in found:
        np.testing.assert_allclose(result.atoms.arrays["score"], result.atoms.arrays["peak_height"] / result.noise)
    index = [cKDTree(r.atoms.positions).query(cluster)[1] for r in found]
    heights = np.array([r.atoms.arrays["peak_height"][i] for r, i in zip(found, index, strict=True)])
    assert heights.std(axis=0, ddof=1).mean() / 0.886 == pytest.approx(found[0].noise, rel=0.25)


def test_shifted_map_gives_shifted_atoms(cluster):
    volume = render(cluster, BANDS[0], noise=0.08)
    first = trace(volume, GOLD)
    rolled = Volume(torch.roll(volume.values, (3, -2, 5), dims=(0, 1, 2)), volume.voxel_size)
    second = trace(rolled, GOLD)
    shift = np.array([5, -2, 3]) * volume.voxel_size
    assert errors(second, first.positions + shift).max() < 0.01


def test_scale_and_offset_do_not_matter(cluster):
    volume = render(cluster, BANDS[0], noise=0.08)
    first = trace(volume, GOLD)
    second = trace(Volume(volume.values.double() * 250 + 17, volume.voxel_size), GOLD)
    assert errors(second, first.positions).max() < 0.01
    np.testing.assert_allclose(second.arrays["peak_height"], first.arrays["peak_height"], atol=0.01)


def test_peaks_of_noise_are_not_reported_as_atoms(cluster):
    white = Volume(torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(1)), 0.6)
    coloured = render(cluster, BANDS[1], noise=40.0)
    radius = np.linalg.norm(np.indices((64,) * 3).T - 32, axis=-1) * 0.4
    masked = Volume(coloured.values * torch.tensor(1 / (1 + np.exp((radius - 7) / 0.3))), 0.4)
    for volume in (white, coloured, masked):
        result = find_atoms(volume, GOLD)
        assert not result.determined
        assert result.reason
    assert trace(masked, GOLD).info["trace_determined"] is False


def test_particle_in_a_masked_map(cluster):
    volume = render(cluster, BANDS[1], noise=0.08)
    radius = np.linalg.norm(np.indices((64,) * 3).T - 32, axis=-1) * 0.4
    masked = Volume(volume.values * torch.tensor(1 / (1 + np.exp((radius - 9) / 0.3))), 0.4)
    result = find_atoms(masked, GOLD)
    assert result.determined
    assert errors(result.atoms, cluster).max() < 0.4
    whole = find_atoms(volume, GOLD)
    assert result.noise == pytest.approx(whole.noise, rel=0.25)


def test_maps_that_hold_nothing_are_named():
    with pytest.raises(InputError, match="constant"):
        trace(Volume(torch.ones(16, 16, 16), 0.5))
    with pytest.raises(InputError, match="NaN"):
        trace(Volume(torch.full((16, 16, 16), math.nan), 0.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"element": "Zz"}, "chemical symbol"),
        ({"resolution": 0.0}, "resolution is 0.0"),
        ({"minimum_distance": -1.0}, "minimum distance is -1.0"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"cycles": 0}, "cycles is 0"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        TracingSettings(**settings)
