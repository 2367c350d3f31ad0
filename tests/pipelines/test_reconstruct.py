"""From simulated images to atoms, the whole road that measured ones take."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from ase import Atoms

from common.atoms.comparison import compare
from common.atoms.tracing import TracingSettings
from common.data import ImageStack, InputError
from common.iteration import State
from common.rotations import geodesic_distance
from common.simulation import SimulatedData, simulate_images
from spr.ab_initio import SearchSettings, patient
from spr.consensus import ConsensusSettings, agree
from spr.map_stages import find_band, look_at
from spr.pipeline import reconstruct
from spr.refinement import RefineSettings
from spr.result import Reconstruction
from spr.settings import Settings

SETTINGS = Settings(
    element="Au",
    search=SearchSettings(iterations=30, images_per_iteration=60, effective_poses=500.0, final_effective_poses=1.5),
    starts=ConsensusSettings(most=5),
    refinement=RefineSettings(rounds=2),
)


def cluster(n: int = 18) -> Atoms:
    """A compact cluster without symmetry, atoms at least 2.6 angstrom apart."""
    generator = torch.Generator().manual_seed(4)
    chosen = torch.zeros(1, 3)
    while len(chosen) < n:
        tried = 5.0 * (2 * torch.rand(4000, 3, generator=generator) - 1)
        near = (tried[:, None] - chosen).norm(dim=2)
        free = tried[near.amin(1) > 2.6]
        chosen = torch.cat((chosen, free[free.norm(dim=1).argmin()][None]))
    return Atoms(f"Au{n}", positions=chosen.numpy())


@pytest.fixture(scope="module")
def data() -> SimulatedData:
    return simulate_images(
        cluster(),
        150,
        box_size=48,
        pixel_size=0.4,
        snr=2.0,
        shift_sigma=0.5,
        generator=torch.Generator().manual_seed(11),
    )


@pytest.fixture(scope="module")
def found(data: SimulatedData, device: torch.device) -> Reconstruction:
    return reconstruct(data.stack.to(device), SETTINGS)


def test_all_atoms_are_found(data: SimulatedData, found: Reconstruction) -> None:
    assert found.determined, found.warnings
    assert found.atoms is not None
    match = compare(found.atoms, data.atoms, tolerance=0.2)
    assert (match.matched, match.n_atoms, match.n_reference) == (18, 18, 18)
    sigma = 100 * math.sqrt(3) * float((found.atoms.arrays["position_sigma"] ** 2).mean()) ** 0.5
    assert match.rmsd_pm < 2 * sigma
    assert set(found.atoms.get_chemical_symbols()) == {"Au"}


def test_poses_are_those_of_the_images(data: SimulatedData, found: Reconstruction) -> None:
    """In the order of the input, left-out images included, up to the particle's frame and hand."""
    assert found.atoms is not None
    assert found.poses is not None
    match = compare(found.atoms, data.atoms, tolerance=0.2)
    frame = torch.from_numpy(match.rotation).float()  # takes found atoms onto the true ones
    rotations, truth = found.poses.rotations.float().cpu(), data.poses.rotations
    if match.mirrored:  # a view and that of the mirrored particle seen from behind are one image
        rotations = torch.diag(torch.tensor([-1.0, -1.0, 1.0])) @ rotations
    error = geodesic_distance(rotations @ frame.T, truth)
    assert float(error.median()) < 1.5
    assert float((error < 10).float().mean()) > 0.97
    # the particle's middle, where the file's images have it
    middle = torch.from_numpy(found.atoms.positions.mean(0)).float()
    seen = found.poses.shifts.float().cpu() + (found.poses.rotations.float().cpu() @ middle)[:, :2]
    assert float((seen - data.poses.shifts).norm(dim=1).median()) < 0.05


def test_maps_and_numbers_come_with_the_atoms(data: SimulatedData, found: Reconstruction) -> None:
    for volume in (found.volume, found.half1, found.half2, found.mask):
        assert volume is not None
        assert volume.box_size == 48
        assert volume.voxel_size == pytest.approx(0.4)
    assert found.metrics["resolution_fsc_0.143_angstrom"] < 1.6
    assert found.metrics["starts_that_agree"] >= 2
    assert found.metrics["held_out_over_fitted"] == pytest.approx(1, abs=0.15)
    assert found.scores is not None
    assert found.scores.held_out is not None
    assert int(found.scores.held_out.sum()) == 8  # 5 % of 150
    # the map lies in the frame of the atoms
    assert found.volume is not None
    assert found.atoms is not None
    values = found.volume.values
    nearest = torch.from_numpy(found.atoms.positions / 0.4).round().long() + 24
    assert float(values[nearest[:, 2], nearest[:, 1], nearest[:, 0]].min()) > 4 * float(values.std())


def test_pure_noise_gives_no_atoms() -> None:
    images = torch.randn(60, 48, 48, generator=torch.Generator().manual_seed(0))
    few = replace(SETTINGS.search, iterations=6, images_per_iteration=20, directions=60, coarsest=8.0, finest=3.0)
    settings = replace(SETTINGS, search=few, starts=ConsensusSettings(most=2))
    found = reconstruct(ImageStack(images, 0.4), settings)
    assert not found.determined
    assert found.atoms is None
    assert found.warnings
    assert found.verdict.startswith("Not determined")


def test_too_few_images_are_refused(data: SimulatedData) -> None:
    with pytest.raises(InputError, match="19 images, expected at least 20"):
        reconstruct(data.stack[torch.arange(19)], SETTINGS)


def test_particle_that_fills_the_box_is_refused(data: SimulatedData) -> None:
    cut = ImageStack(data.stack.images[:, 12:36, 12:36], 0.4)
    with pytest.raises(InputError, match="cut larger boxes"):
        reconstruct(cut, SETTINGS)


class Names:
    """Writes down the name of every loop."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def resume(self, name: str, first: State) -> None:
        self.names.append(name)

    def observe(self, name: str, state: State) -> None: ...


def test_starts_that_disagree_are_followed_by_starts_in_a_wider_band(data: SimulatedData) -> None:
    """Each start has its own name and seed, and what is told counts all of them."""
    never = ConsensusSettings(most=3, narrow=2, agreeing=2, same_atoms=1.1)
    hasty = SearchSettings(iterations=2, images_per_iteration=10)
    names: list[str] = []
    found = reconstruct(data.stack, replace(SETTINGS, search=hasty, starts=never), observers=[Names(names)])
    assert list(dict.fromkeys(names)) == [f"search/start-{k}" for k in (1, 2, 3, 4)]
    assert found.metrics["starts"] == 4
    assert "nor 2 starts that looked at the strongest rings alone" in found.warnings[0]


def test_starts_after_the_quick_ones_take_their_time(data: SimulatedData) -> None:
    rings, grid = find_band(look_at(data.stack, SETTINGS), SETTINGS)
    hasty = SearchSettings(iterations=2, images_per_iteration=80)
    never = ConsensusSettings(most=3, quick=1, same_atoms=1.1)
    found = agree(rings, grid, hasty, TracingSettings(), never, seed=0, patient=patient(hasty))
    assert [one.state.iteration for one in found.starts] == [2, 6, 6]
    assert patient(hasty).images_per_iteration == 40


def test_band_that_is_given_is_the_only_one(data: SimulatedData) -> None:
    never = ConsensusSettings(most=3, narrow=2, agreeing=2, same_atoms=1.1)
    hasty = SearchSettings(iterations=2, images_per_iteration=10, coarsest=3.0, finest=2.0)
    found = reconstruct(data.stack, replace(SETTINGS, search=hasty, starts=never))
    assert found.metrics["starts"] == 3
    assert "strongest rings" not in found.warnings[0]
