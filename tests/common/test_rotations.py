import math

import pytest
import torch

from common.data import InputError
from common.rotations import (
    euler_to_matrix,
    fibonacci_directions,
    geodesic_distance,
    matrix_to_euler,
    mean_rotation,
    nearest_rotation,
    point_group,
    random_rotations,
    rotation_from_vector,
    rotation_grid,
    rotations_to_directions,
    vector_from_rotation,
)


def draw(n, seed=0):
    return random_rotations(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_random_rotations_are_proper_and_uniform():
    rotations = draw(20000)
    assert torch.allclose(rotations @ rotations.mT, torch.eye(3, dtype=torch.float64).expand(20000, 3, 3))
    assert torch.allclose(torch.linalg.det(rotations), torch.ones(20000, dtype=torch.float64))
    # over SO(3) the mean matrix is 0 and the angle to the identity has density (1 - cos) / pi, mean 126.5 degrees
    assert float(rotations.mean(0).abs().max()) < 0.02
    angles = geodesic_distance(rotations, torch.eye(3, dtype=torch.float64))
    assert float(angles.mean()) == pytest.approx(math.degrees(math.pi / 2 + 2 / math.pi), abs=1)


@pytest.mark.parametrize("tilt", [0.0, 1e-9, 1e-4, 60.0, 180 - 1e-4, 180.0])
def test_euler_angles_give_their_matrix_back_at_and_near_the_poles(tilt):
    angles = torch.tensor([[r, tilt, p] for r in (-180.0, -77.0, 0.0, 90.0) for p in (-33.0, 180.0)]).double()
    matrix = euler_to_matrix(angles)
    assert torch.allclose(euler_to_matrix(matrix_to_euler(matrix)), matrix, atol=1e-12)


def test_euler_angles_away_from_the_poles_come_back_themselves():
    angles = torch.tensor([[-170.0, 10.0, 20.0], [35.0, 90.0, -120.0]]).double()
    assert torch.allclose(matrix_to_euler(euler_to_matrix(angles)), angles)


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-5, 0.0999, 0.1001, 1.0, math.pi - 1e-9, math.pi])
def test_exponential_and_logarithm_are_inverse(size):
    axis = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]]).double()
    vectors = torch.nn.functional.normalize(axis, dim=-1) * size
    rotations = rotation_from_vector(vectors)
    assert torch.allclose(rotations, torch.linalg.matrix_exp(cross(vectors)), atol=1e-13)
    back = vector_from_rotation(rotations)
    assert torch.allclose(rotation_from_vector(back), rotations, atol=1e-12)
    if size < 3:
        assert torch.allclose(back, vectors, atol=1e-13)


def cross(v):
    matrix = torch.zeros(*v.shape, 3, dtype=v.dtype)
    matrix[:, 2, 1], matrix[:, 1, 2] = v[:, 0], -v[:, 0]
    matrix[:, 0, 2], matrix[:, 2, 0] = v[:, 1], -v[:, 1]
    matrix[:, 1, 0], matrix[:, 0, 1] = v[:, 2], -v[:, 2]
    return matrix


@pytest.mark.parametrize("size", [0.0, 1e-8, 0.1, 2.0])
def test_gradients_of_exponential_and_logarithm(size):
    vector = (torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64) * size).requires_grad_()
    assert torch.autograd.gradcheck(rotation_from_vector, vector)
    assert torch.autograd.gradcheck(lambda v: vector_from_rotation(rotation_from_vector(v)), vector)


@pytest.mark.parametrize("degrees", [0.0, 1e-3, 30.0, 179.9, 180.0])
def test_geodesic_distance_is_the_angle_turned(degrees):
    start = draw(10).float()
    turn = rotation_from_vector(torch.tensor([0.0, math.radians(degrees), 0.0]))
    assert torch.allclose(geodesic_distance(start, start @ turn), torch.tensor(degrees), atol=0.05)


def test_directions_cover_the_sphere_evenly():
    directions = fibonacci_directions(500, dtype=torch.float64)
    assert torch.allclose(directions.norm(dim=-1), torch.ones(500, dtype=torch.float64))
    closest = (directions @ directions.T - 2 * torch.eye(500)).amax(1).arccos().rad2deg()
    ideal = math.degrees(math.sqrt(4 * math.pi / 500))
    assert float(closest.min()) > 0.7 * ideal
    assert float(closest.max()) < 1.2 * ideal


def test_grid_rotations_bring_their_direction_onto_the_beam():
    grid = rotation_grid(20, 6, dtype=torch.float64)
    directions = fibonacci_directions(20, dtype=torch.float64)
    views = torch.einsum("apij,aj->api", grid, directions)
    assert torch.allclose(views, torch.tensor([0.0, 0.0, 1.0]).double().expand_as(views), atol=1e-12)
    assert torch.allclose(geodesic_distance(grid[:, 0], grid[:, 1]), torch.tensor(60.0).double())


def test_in_plane_angle_is_psi():
    direction = torch.tensor([0.3, -0.4, math.sqrt(0.75)]).double()
    rotation = rotations_to_directions(direction, torch.tensor(25.0).double())
    assert float(matrix_to_euler(rotation)[2]) == pytest.approx(25.0)


def test_mean_rotation_is_halfway_and_follows_its_weights():
    turn = rotation_from_vector(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.4]]).double())
    start = draw(1)
    mean = mean_rotation(turn @ start)
    assert torch.allclose(mean, rotation_from_vector(torch.tensor([0.0, 0.0, 0.2]).double()) @ start[0])
    heavy = mean_rotation(turn @ start, torch.tensor([0.0, 2.0]).double())
    assert torch.allclose(heavy, (turn @ start)[1])


def test_nearest_rotation_is_proper_and_leaves_rotations_alone():
    rotations = draw(5)
    assert torch.allclose(nearest_rotation(rotations), rotations)
    mirrored = nearest_rotation(rotations * torch.tensor([1.0, 1.0, -0.5]).double())
    assert torch.allclose(torch.linalg.det(mirrored), torch.ones(5).double())


ORDERS = [("C1", 1), ("C7", 7), ("D3", 6), ("T", 12), ("o", 24), ("I1", 60), ("I2", 60)]


@pytest.mark.parametrize(("name", "order"), ORDERS)
def test_point_groups_are_groups(name, order):
    group = point_group(name, dtype=torch.float64)
    assert group.shape == (order, 3, 3)
    assert torch.allclose(group[0], torch.eye(3).double())
    products = (group[:, None] @ group[None]).reshape(-1, 1, 3, 3)
    assert float((products - group).abs().amax((-2, -1)).amin(-1).max()) < 1e-10


@pytest.mark.parametrize(("name", "axis"), [("I1", (0.0, 0.525731, 0.850651)), ("I2", (0.525731, 0.0, 0.850651))])
def test_fivefold_nearest_the_beam_in_relion_settings(name, axis):
    group = point_group(name, dtype=torch.float64)
    vector = torch.tensor(axis, dtype=torch.float64)
    assert int(((group @ vector - vector).abs().amax(-1) < 1e-5).sum()) == 5


def test_unknown_point_group_says_what_is_known():
    with pytest.raises(InputError, match=r"C0.*expected C<n>"):
        point_group("C0")
