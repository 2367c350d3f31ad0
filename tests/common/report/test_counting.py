import math

import numpy as np
import pytest
import torch

from common.report import counting


def test_directions_are_counted_in_the_cell_they_point_to():
    # view = R @ specimen: an image taken along +x of the specimen turns +x into the beam, +z of the view
    along_x = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    counts, longitude, latitude = counting.count_directions(along_x.expand(5, 3, 3))
    row, column = np.argwhere(counts)[0]
    assert counts[row, column] == counts.sum() == 5
    assert longitude[column] <= 0 <= longitude[column + 1]
    assert latitude[row] <= 0 <= latitude[row + 1]


def test_direction_cells_have_equal_solid_angle_and_cover_the_sphere():
    counts, longitude, latitude = counting.count_directions(torch.eye(3).expand(2000, 3, 3))
    areas = np.diff(np.sin(latitude))[:, None] * np.diff(longitude)[None, :]
    assert areas.shape == counts.shape
    assert areas == pytest.approx(4 * math.pi / counts.size)


def test_no_direction_is_lost_at_the_poles():
    up_and_down = torch.stack((torch.eye(3), torch.diag(torch.tensor([1.0, -1.0, -1.0]))))
    counts, _, _ = counting.count_directions(up_and_down)
    assert counts[0].sum() == 1
    assert counts[-1].sum() == 1


def test_pair_distances_of_a_cube():
    corners = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    edges, counts = counting.count_pairs(corners, 2.0, bins=40)
    found = {round(float(edges[i]), 2): int(counts[i]) for i in np.flatnonzero(counts)}
    assert list(found.values()) == [12, 12, 4]  # edges, face diagonals, space diagonals
    assert all(e <= d <= e + 0.05001 for e, d in zip(found, (1, math.sqrt(2), math.sqrt(3)), strict=True))


def test_pair_distances_agree_with_all_pairs():
    points = np.random.default_rng(3).uniform(0, 10, (60, 3))
    edges, counts = counting.count_pairs(points, 8.0)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)[np.triu_indices(60, 1)]
    assert counts == pytest.approx(np.histogram(distances, edges)[0])


def test_nearest_distances_of_a_row():
    row = np.array([[0.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0]])
    assert counting.nearest_distances(row) == pytest.approx([1, 1, 2])
    assert counting.nearest_distances(row[:1]).size == 0
