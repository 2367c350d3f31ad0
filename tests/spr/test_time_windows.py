"""Atoms followed through windows of time: those that stay, and one that does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.cluster import Icosahedron

from common.atoms.fisher import fisher
from common.atoms.model import AtomicModel
from common.atoms.refinement import refine_atoms
from common.data import Poses, Volume
from common.simulation import SimulatedData, simulate_images
from spr.map_stages import look_at
from spr.seen import Seen
from spr.settings import Settings
from spr.time_windows import Window, compare_maps, follow_atoms

N, LENGTH = 240, 120
SETTINGS = Settings(element="Au")


def images_of(atoms: Atoms, seed: int) -> SimulatedData:
    generator = torch.Generator().manual_seed(seed)
    size = {"box_size": 44, "pixel_size": 0.4}
    return simulate_images(atoms, N // 2, **size, snr=1.0, shift_sigma=0.3, generator=generator)  # type: ignore[arg-type]


def parts(first: Atoms, second: Atoms) -> tuple[AtomicModel, tuple[Window, ...], Seen]:
    """A particle that is ``first`` in one half of the time and ``second`` in the other."""
    one, two = images_of(first, 1), images_of(second, 2)
    stack = replace(one.stack, images=torch.cat((one.stack.images, two.stack.images)))
    poses = Poses(*(torch.cat((getattr(one.poses, n), getattr(two.poses, n))) for n in ("rotations", "shifts")))
    seen: Seen = look_at(stack, SETTINGS, hold_out=False)
    model = refine_atoms(stack, seen.noise, one.atoms, poses, SETTINGS.atoms)
    model = fisher(stack, seen.noise, model, SETTINGS.atoms)
    return model, follow_atoms(seen, model, torch.arange(N), LENGTH, SETTINGS.atoms), seen


def followed(first: Atoms, second: Atoms) -> tuple[AtomicModel, tuple[Window, ...], SimulatedData]:
    """As `parts`, with what the first half was made from."""
    return (*parts(first, second)[:2], images_of(first, 1))


@pytest.fixture(scope="module")
def cluster() -> Atoms:
    atoms = Icosahedron("Au", 2)
    atoms.positions += 0.1 * np.random.default_rng(0).standard_normal(atoms.positions.shape)
    atoms.positions -= atoms.positions.mean(0)
    return atoms


def test_atoms_that_stay_move_by_their_sigmas_alone(cluster: Atoms) -> None:
    model, windows, _ = followed(cluster, cluster)
    assert [(window.first, window.last) for window in windows] == [(0, 119), (60, 179), (120, 239)]
    assert model.position_sigma is not None
    for window in windows:
        variance = window.sigma.square() - model.position_sigma.square()
        assert 0.7 < float((window.moved.square().sum(1) / (3 * variance)).mean().sqrt()) < 1.4
        assert not bool(window.significant.any())


def test_atom_that_moves_is_named_and_no_other(cluster: Atoms) -> None:
    """It goes by 0.12 angstrom along y in the middle of the movie."""
    later = cluster.copy()
    later.positions[5, 1] += 0.12
    _, windows, truth = followed(cluster, later)
    assert windows[0].significant.nonzero()[:, 0].tolist() == [5]
    assert windows[-1].significant.nonzero()[:, 0].tolist() == [5]
    way = (windows[-1].positions - windows[0].positions)[5]
    assert float(way.norm()) == pytest.approx(0.11, abs=0.03)
    assert truth.atoms.positions[5, 1] == pytest.approx(cluster.positions[5, 1])


def test_an_atom_that_leaves_and_one_that_comes_are_named(cluster: Atoms) -> None:
    """One atom is there in the first half alone, another, outside of the particle, in the second alone."""
    far = cluster.positions[np.argmax(np.linalg.norm(cluster.positions, axis=1))]
    outside = far * (1 + 2.8 / np.linalg.norm(far))
    later = cluster.copy()
    del later[7]
    later += Atoms("Au", positions=[outside])
    _, windows, _ = followed(cluster, later)
    assert [window.gone.nonzero()[:, 0].tolist() for window in windows] == [[], [], [7]]
    assert [len(window.new) for window in windows] == [0, 0, 1] or [len(w.new) for w in windows] == [0, 1, 1]
    assert float((windows[-1].new[0] - torch.from_numpy(outside)).norm()) < 0.4
    assert float(windows[-1].gained[0]) > 30


def test_maps_of_windows_agree_where_nothing_changed(cluster: Atoms) -> None:
    """And less where a fifth of the atoms have moved by an angstrom."""
    later = cluster.copy()
    later.positions[::5] += [0.0, 0.7, 0.7]
    least = []
    for second in (cluster, later):
        model, windows, seen = parts(cluster, second)
        mask = Volume(torch.ones(44, 44, 44), 0.4)
        (compared,) = compare_maps(seen, model, torch.arange(N), windows, mask)
        assert (compared.first, compared.second) == (0, 2)
        band = (compared.fsc.frequencies > 0.3) & (compared.fsc.frequencies < 0.5)
        least.append(float(compared.fsc.correlation[band].min()))
    assert least[0] > 0.85
    assert least[1] < least[0] - 0.1
