"""Two isomers in one stack: which image shows which, and what differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from common.atoms.comparison import compare
from common.atoms.model import AtomicModel
from common.atoms.pose_search import PoseSearchSettings
from common.atoms.refinement import refine_atoms
from common.atoms.shared import RefinementSettings
from common.data import ImageStack, InputError, Poses
from common.io.checkpoint import CheckpointObserver
from common.noise import NoiseModel, extent_and_noise
from common.rotations import random_rotations
from common.simulation import simulate_images
from spr.class_differences import describe, differences, rows_of
from spr.class_evidence import believed, evidence_of
from spr.class_split import split_gradients, split_images
from spr.classes_3d import ReconstructSettings, reconstruct_classes
from spr.cli import main
from spr.mixture import Mixture, class_posterior, mixed_likelihood, settle

STEPS = RefinementSettings(max_steps=6, curvature_images=24)


def cluster() -> np.ndarray:
    """16 places of a lattice, at least 2.9 angstrom apart, without symmetry."""
    grid = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3) * 2.9
    order = np.argsort(np.linalg.norm(grid - [0.4, 0.9, -0.6], axis=1))
    return grid[order][:16]


def isomers() -> tuple[Atoms, Atoms]:
    """13 atoms in common, and one more or two more of the three other places."""
    places = cluster()
    return Atoms("Au15", places[:15]), Atoms("Au14", places[[*range(13), 15]])


@pytest.fixture(scope="module")
def mixed() -> tuple[ImageStack, NoiseModel, Poses, torch.Tensor]:
    """40 images of one isomer, then 60 of the other, in one frame: their poses, and which is which."""
    images, poses, labels = [], [], []
    for k, (atoms, n) in enumerate(zip(isomers(), (40, 60), strict=True)):
        generator = torch.Generator().manual_seed(20 + k)
        data = simulate_images(atoms, n, box_size=56, pixel_size=0.4, snr=1.0, shift_sigma=0.3, generator=generator)
        middle = torch.from_numpy(atoms.positions.mean(0)).float()
        shifts = data.poses.shifts - (data.poses.rotations.float() @ middle)[:, :2]
        images.append(data.stack.images)
        poses.append(Poses(data.poses.rotations, shifts))
        labels.append(torch.full((n,), k))
    stack = ImageStack(torch.cat(images), 0.4)
    both = Poses(torch.cat([p.rotations for p in poses]), torch.cat([p.shifts for p in poses]))
    return stack, extent_and_noise(stack)[1], both, torch.cat(labels)


@pytest.fixture(scope="module")
def average(mixed: tuple[ImageStack, NoiseModel, Poses, torch.Tensor]) -> AtomicModel:
    """All atoms of both isomers, refined against all images."""
    stack, noise, poses, _ = mixed
    return refine_atoms(stack, noise, Atoms("Au16", cluster()), poses, STEPS)


def settled(mixed: tuple, average: AtomicModel, order: tuple[int, int], observers: tuple = ()) -> Mixture:
    """From a split by the images' own gradients to classes; ``order`` names the two groups."""
    stack, noise, _, _ = mixed
    second = split_images(stack, noise, average, STEPS).second
    posterior = torch.stack((~second, second), 1).double()[:, list(order)]
    first = Mixture((average, average), posterior, posterior.mean(0))
    return settle(stack, noise, first, STEPS, PoseSearchSettings(), observers, "class-2", rounds=2)


@pytest.fixture(scope="module")
def found(mixed: tuple, average: AtomicModel) -> Mixture:
    return settled(mixed, average, (0, 1))


def test_images_of_two_isomers_are_told_apart(mixed: tuple, found: Mixture) -> None:
    labels = mixed[3]
    right = (found.classes == labels).double().mean()
    assert max(float(right), 1 - float(right)) >= 0.97
    assert torch.allclose(found.posterior.sum(1), torch.ones(100, dtype=torch.float64))
    for k, model in enumerate(found.models):
        most = int(labels[found.classes == k].double().mean().round())
        match = compare(model.to_ase(), isomers()[most], tolerance=0.3)
        assert match.matched == match.n_atoms == match.n_reference
        assert match.rmsd_pm < 8


def test_the_names_of_the_classes_do_not_matter(mixed: tuple, average: AtomicModel, found: Mixture) -> None:
    other = settled(mixed, average, (1, 0))
    torch.testing.assert_close(other.posterior, found.posterior[:, [1, 0]], atol=1e-4, rtol=0)
    torch.testing.assert_close(other.models[1].positions, found.models[0].positions, atol=1e-4, rtol=0)


def test_a_stopped_run_goes_on_to_the_same_end(
    mixed: tuple, average: AtomicModel, found: Mixture, tmp_path: Path
) -> None:
    class Stop(CheckpointObserver):
        def observe(self, name, state) -> None:  # type: ignore[no-untyped-def]
            super().observe(name, state)
            if name == "class-2-round-1/class-2/atoms" and state.iteration == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        settled(mixed, average, (0, 1), (Stop(tmp_path, interval=0),))
    again = settled(mixed, average, (0, 1), (CheckpointObserver(tmp_path, interval=0),))
    assert torch.equal(again.posterior, found.posterior)
    assert torch.equal(again.models[1].positions, found.models[1].positions)


def test_identical_classes_are_no_evidence() -> None:
    nats = 100 + 20 * torch.randn(40, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shares = torch.tensor([0.3, 0.7], dtype=torch.float64)
    gain, error = evidence_of(nats.expand(40, 2), shares, nats, shares.new_ones(1))
    assert gain == pytest.approx(0, abs=1e-9)
    assert not believed(gain, error)
    odd = torch.arange(40)[:, None] % 2
    apart = torch.cat((nats + 20 * odd, nats + 20 * (1 - odd)), 1)
    assert believed(*evidence_of(apart, shares, nats, shares.new_ones(1)))


def test_posteriors_sum_to_one_and_shares_are_found() -> None:
    generator = torch.Generator().manual_seed(2)
    true = torch.rand(3000, generator=generator) < 0.3
    nats = torch.randn(3000, 2, generator=generator, dtype=torch.float64) * 2
    nats[:, 0] += torch.where(true, 4.0, -4.0)  # differences are normal with mean +-d and variance 2 d: calibrated
    posterior, shares = class_posterior(nats)
    assert torch.allclose(posterior.sum(1), torch.ones(3000, dtype=torch.float64))
    assert float(shares[0]) == pytest.approx(0.3, abs=0.03)
    flipped, _ = class_posterior(nats[:, [1, 0]])
    torch.testing.assert_close(flipped[:, [1, 0]], posterior)
    assert bool((mixed_likelihood(nats, shares) <= nats.max(1).values).all())


def test_images_that_are_alike_are_not_split() -> None:
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    information = root @ root.T + 5 * torch.eye(40, dtype=torch.float64)
    gradients = torch.randn(400, 40, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(information).T
    weights = torch.ones(400, dtype=torch.float64)
    assert split_gradients(gradients, information, weights).strength < 1.25
    second = torch.arange(400) % 3 == 0
    atom = torch.eye(40, dtype=torch.float64)[7] * 4 / information[7, 7].sqrt()
    split = split_gradients(gradients + second[:, None] * (information @ atom), information, weights)
    assert split.strength > 1.5
    right = float((split.second == second).double().mean())
    assert max(right, 1 - right) > 0.95


@pytest.mark.parametrize("hand", [1.0, -1.0])
def test_differences_are_found_atom_by_atom(hand: float) -> None:
    generator = np.random.default_rng(5)
    irregular = cluster() + 0.4 * generator.normal(size=(16, 3))  # the lattice would fit its own mirror image
    first = Atoms("Au16", irregular)
    places = irregular + 0.01 * generator.normal(size=(16, 3))
    places[3] += [0.3, 0, 0]
    places[15] += [9.0, 9.0, 0]
    turn = random_rotations(1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[0].numpy()
    order = generator.permutation(16)
    second = Atoms("Au16", (hand * places @ turn.T + [1.0, 2.0, 3.0])[order])
    for atoms in (first, second):
        atoms.set_array("position_sigma", np.full(16, 0.01))
    found = differences(first, second)
    assert found.pairs[found.moved].tolist() == [[3, int(np.flatnonzero(order == 3)[0])]]
    assert float(found.distances[found.moved][0]) == pytest.approx(0.3, abs=0.05)
    assert found.only_first.tolist() == [15]
    assert found.only_second.tolist() == np.flatnonzero(order == 15).tolist()
    assert [row.what for row in rows_of(found)] == ["moved", "only in class 1", "only in class 2"]
    assert "15 atoms in both, 1 of them moved" in describe(found)


@pytest.mark.parametrize(("given", "message"), [("0", "0 classes are wanted"), ("x", "'x'"), ("2.5", "2.5")])
def test_a_number_of_classes_that_is_none_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str, message: str
) -> None:
    assert main(["simulate", "--out", str(tmp_path / "a"), "--n-images", "20", "--n-atoms", "5"]) == 0
    capsys.readouterr()
    assert main(["reconstruct", str(tmp_path / "a" / "particles.star"), "--classes", given]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "a" / "particles_run").exists()


def test_more_classes_than_images_for_them_are_refused() -> None:
    with pytest.raises(InputError, match="3 classes of 40 images"):
        reconstruct_classes(ImageStack(torch.randn(40, 48, 48), 0.4), ReconstructSettings(classes=3))
