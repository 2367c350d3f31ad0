"""Crystals from a few images, of whose lattice the kind is known: where it lies, and its atoms, are found."""

from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from aet_tilt.cli import main
from aet_tilt.reconstruction.discrete import DiscreteSettings
from aet_tilt.reconstruction.few_images import fill_crystal
from aet_tilt.reconstruction.lattice_search import (
    LatticeSettings,
    Lying,
    crystal_of,
    find_lattices,
    flat_spectra,
    reciprocal_points,
    sites_of,
    spot_scores,
)
from common.data import ImageStack, InputError, Poses
from common.io import read_xyz, write_images
from common.io.tilt_angles import write_tilt_angles
from common.rotations import random_rotations
from common.simulation_tilts import AnnularImaging, simulate_tilts

PIXEL, BACKGROUND = 0.4, 2.0


def _particle(element: str, constant: float, seed: int, structure: str = "") -> ase.Atoms:
    """A cut ball of a crystal in some orientation, with a vacancy."""
    generator = torch.Generator().manual_seed(seed)
    crystal = crystal_of((element,), LatticeSettings(structure, constant))
    turn = random_rotations(1, generator=generator)[0].double()
    sites = sites_of(crystal, Lying(turn, 1.0, torch.rand(3, generator=generator).double()), 6.0)
    sites = sites[sites @ turn[:, 0] < 3.5]
    sites = sites[sites.norm(dim=1) > sites.norm(dim=1).min()]
    return ase.Atoms(f"{element}{len(sites)}", (sites - sites.mean(0)).numpy())


def _images(atoms: ase.Atoms, n: int, seed: int = 0) -> tuple[ImageStack, Poses]:
    """Counts without their background, and poses with shifts that are off by a third of an angstrom."""
    generator = torch.Generator().manual_seed(seed)
    data = simulate_tilts(
        atoms,
        torch.linspace(-60, 60, n),
        box_size=48,
        pixel_size=PIXEL,
        imaging=AnnularImaging(brightest=100.0, background=BACKGROUND),
        generator=generator,
    )
    off = 0.3 * torch.randn(n, 2, generator=generator)
    images = data.stack.images.double() - BACKGROUND
    return ImageStack(images, PIXEL), Poses(data.nominal.rotations.double(), off.double())


def _right(found: Tensor, truth: ase.Atoms) -> tuple[int, float]:
    """How many atoms lie within 0.3 angstrom of a true one, up to a common shift, and their rms error."""
    positions, tree = found.numpy().copy(), cKDTree(truth.positions)
    for _ in range(6):
        positions -= np.median(positions - truth.positions[tree.query(positions)[1]], axis=0)
    away = tree.query(positions)[0]
    return int((away < 0.3).sum()), float(np.sqrt((away[away < 0.3] ** 2).mean()))


@pytest.mark.parametrize(
    ("element", "constant", "structure", "n"),
    [("Au", 4.08, "", 3), ("Si", 5.43, "", 5), ("Co", 2.51, "hcp", 4)],
)
def test_every_atom_is_found_with_its_lattice(element: str, constant: float, structure: str, n: int) -> None:
    """The lattice constant that is given is too large by 1.5 %."""
    truth = _particle(element, constant, 3, structure)
    stack, poses = _images(truth, n)
    crystal = crystal_of((element,), LatticeSettings(structure, 1.015 * constant))
    found = fill_crystal(stack, poses, crystal, 8.0, DiscreteSettings(), rounds=2)
    assert len(found.positions) == len(truth)
    right, error = _right(found.positions, truth)
    assert right == len(truth)
    assert error < 0.03
    assert found.lying.scale * 1.015 == pytest.approx(1.0, abs=2e-3)
    assert found.correlation > 0.9


def test_spots_are_brightest_in_the_true_orientation() -> None:
    """Of the images of a crystal, against 500 orientations away from all equivalent ones."""
    crystal = crystal_of(("Au",), LatticeSettings())
    turn = random_rotations(1, generator=torch.Generator().manual_seed(8))[0].double()
    sites = sites_of(crystal, Lying(turn, 1.0, torch.zeros(3).double()), 9.0)
    stack, poses = _images(ase.Atoms(f"Au{len(sites)}", sites.numpy()), 5)
    others = torch.cat((turn[None], random_rotations(500, generator=torch.Generator().manual_seed(9)).double()))
    points = reciprocal_points(crystal, PIXEL)
    scores = spot_scores(flat_spectra(stack), poses, points, others, 9.0)
    assert float(scores[0]) > 1.5 * float(scores[1:].median())
    assert float(scores[0]) > 0.95 * float(scores.max())


def test_the_seed_decides() -> None:
    truth = _particle("Au", 4.08, 1)
    stack, poses = _images(truth, 3)
    crystal = crystal_of(("Au",), LatticeSettings())
    one, same = (
        find_lattices(stack, poses, crystal, 8.0, generator=torch.Generator().manual_seed(4)) for _ in range(2)
    )
    assert torch.equal(one[0].rotation, same[0].rotation)
    assert torch.equal(one[0].origin, same[0].origin)


def test_the_command_finds_a_crystal_in_three_images(tmp_path: Path, capsys: Any) -> None:
    truth = _particle("Au", 4.12, 6)
    stack, _ = _images(truth, 3)
    write_images(tmp_path / "three.mrc", (stack.images + BACKGROUND).float(), PIXEL)
    write_tilt_angles(tmp_path / "three.tlt", torch.linspace(-60, 60, 3))
    command = ["reconstruct", str(tmp_path / "three.mrc"), "--method", "discrete", "--out", str(tmp_path / "run")]
    assert main([*command, "--elements", "Au,Pd"]) == 2
    assert "one element, not 2" in capsys.readouterr().err
    assert main([*command, "--element", "Au"]) == 0
    found = read_xyz(tmp_path / "run" / "atoms.xyz")
    assert len(found) == len(truth)
    assert _right(torch.from_numpy(found.positions), truth)[0] == len(truth)
    assert "lattice_constant_angstrom: 4.1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("elements", "settings", "said"),
    [
        (("Au", "Pd"), LatticeSettings(), "one element, not 2"),
        (("Ga",), LatticeSettings(), "the crystal of Ga is not known"),
        (("Au",), LatticeSettings("bcc"), "say --lattice.structure and --lattice.constant"),
    ],
)
def test_what_is_no_lattice_is_refused(elements: tuple[str, ...], settings: LatticeSettings, said: str) -> None:
    with pytest.raises(InputError, match=said):
        crystal_of(elements, settings)


def test_pixels_too_large_for_lattice_planes_are_refused() -> None:
    with pytest.raises(InputError, match="show no lattice planes"):
        reciprocal_points(crystal_of(("Au",), LatticeSettings()), 2.0)


def test_unknown_structures_are_refused() -> None:
    with pytest.raises(InputError, match="expected one of fcc, bcc"):
        LatticeSettings("quasi")
