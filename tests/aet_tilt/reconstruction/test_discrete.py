import math

import pytest
import torch

from aet_tilt.reconstruction.discrete import DiscreteSettings, fill_lattice, lattice_problem, lattice_sites
from common.data import ImageStack, InputError, Poses

FCC = torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]) * 4.08
ORIGIN = torch.tensor([0.3, -0.2, 0.5])


def particle(n, noise):
    """A cut ball of gold with a vacancy, seen along n zone axes at 45 degrees from each other."""
    sites = lattice_sites(FCC, ORIGIN, 11.0)
    radii = sites.norm(dim=-1)
    truth = ((radii < 8) & ~((sites[:, 0] > 2) & (sites[:, 2] > 3))).float()
    truth[radii.argmin()] = 0
    poses = Poses.from_tilt_angles(torch.tensor([0.0, 45.0, 90.0, -45.0, 22.5])[:n])
    axis = (torch.arange(64) - 32) * 0.4
    seen = torch.einsum("nij,sj->nsi", poses.rotations[:, :2], sites[truth > 0])
    x, y = (torch.exp(-((axis - seen[..., i : i + 1]) ** 2) / (2 * 0.5**2)) for i in range(2))
    images = 7 * torch.einsum("nsy,nsx->nyx", y, x)
    images += noise * images.max() * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return lattice_problem(ImageStack(images, 0.4), poses, sites, 0.5), truth


@pytest.mark.parametrize(("n", "noise"), [(3, 0.0), (3, 0.1), (5, 0.1)])
def test_three_images_fill_every_site_rightly_and_leave_the_vacancy(n, noise):
    problem, truth = particle(n, noise)
    found = fill_lattice(problem)
    assert torch.equal(found.occupancies, truth)
    assert found.height == pytest.approx(7, rel=0.02)


def test_changes_after_the_relaxation_end_in_a_minimum_of_zeros_and_ones():
    problem, truth = particle(2, 0.03)  # two images leave much open
    found = fill_lattice(problem, DiscreteSettings(coherence=0.0))
    assert set(found.occupancies.tolist()) == {0.0, 1.0}
    error, best = (
        float(x @ problem.overlaps @ x * h**2 / 2 - h * problem.matches @ x)
        for x, h in ((found.occupancies, found.height), (truth, 7.0))
    )
    assert error == pytest.approx(best, rel=0.02)


def test_sites_are_all_lattice_points_in_the_ball():
    sites = lattice_sites(FCC, ORIGIN, 12.0)
    assert len(sites) == pytest.approx(4 / 3 * math.pi * 12**3 / (4.08**3 / 4), rel=0.05)
    indices = (sites - ORIGIN) @ torch.linalg.inv(FCC)
    assert torch.allclose(indices, indices.round(), atol=1e-4)
    assert float(sites.norm(dim=-1).max()) <= 12


def test_what_cannot_be_a_lattice_is_refused():
    with pytest.raises(InputError, match="lie in a plane"):
        lattice_sites(torch.ones(3, 3), ORIGIN, 5.0)
    stack, poses = ImageStack(torch.zeros(2, 8, 8), 0.4), Poses.from_tilt_angles(torch.zeros(2))
    with pytest.raises(InputError, match="1 sites"):
        lattice_problem(stack, poses, torch.zeros(1, 3), 0.5)
    sites = lattice_sites(FCC, ORIGIN, 5.0)
    with pytest.raises(InputError, match="do not match"):
        fill_lattice(lattice_problem(stack, poses, sites, 0.5))
