import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from common.report import FourierShellCorrelation, Metric, figures


def test_directions_are_counted_in_the_cell_they_point_to():
    # view = R @ specimen: an image taken along +x of the specimen turns +x into the beam, +z of the view
    along_x = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    counts, longitude, latitude = figures.count_directions(along_x.expand(5, 3, 3))
    row, column = np.argwhere(counts)[0]
    assert counts[row, column] == counts.sum() == 5
    assert longitude[column] <= 0 <= longitude[column + 1]
    assert latitude[row] <= 0 <= latitude[row + 1]


def test_direction_cells_have_equal_solid_angle_and_cover_the_sphere():
    counts, longitude, latitude = figures.count_directions(torch.eye(3).expand(2000, 3, 3))
    areas = np.diff(np.sin(latitude))[:, None] * np.diff(longitude)[None, :]
    assert areas.shape == counts.shape
    assert areas == pytest.approx(4 * math.pi / counts.size)


def test_no_direction_is_lost_at_the_poles():
    up_and_down = torch.stack((torch.eye(3), torch.diag(torch.tensor([1.0, -1.0, -1.0]))))
    counts, _, _ = figures.count_directions(up_and_down)
    assert counts[0].sum() == 1
    assert counts[-1].sum() == 1


def test_pair_distances_of_a_cube():
    corners = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    edges, counts = figures.count_pairs(corners, 2.0, bins=40)
    found = {round(float(edges[i]), 2): int(counts[i]) for i in np.flatnonzero(counts)}
    assert list(found.values()) == [12, 12, 4]  # edges, face diagonals, space diagonals
    assert all(e <= d <= e + 0.05001 for e, d in zip(found, (1, math.sqrt(2), math.sqrt(3)), strict=True))


def test_pair_distances_agree_with_all_pairs():
    points = np.random.default_rng(3).uniform(0, 10, (60, 3))
    edges, counts = figures.count_pairs(points, 8.0)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)[np.triu_indices(60, 1)]
    assert counts == pytest.approx(np.histogram(distances, edges)[0])


def test_nearest_distances_of_a_row():
    row = np.array([[0.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0]])
    assert figures.nearest_distances(row) == pytest.approx([1, 1, 2])
    assert figures.nearest_distances(row[:1]).size == 0


def test_charts_are_sound_svg_that_scales():
    frequencies = torch.linspace(0.1, 1, 9)
    chart = figures.plot_fsc(FourierShellCorrelation(frequencies, {"halves": 1 - frequencies}, 1.17))
    root = ElementTree.fromstring(chart)
    assert root.tag.endswith("svg")
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    assert "height" not in root.attrib
    words = _words(chart)
    for said in ("1.17 Å", "0.143", "spatial frequency (1/Å)", "Fourier shell correlation"):
        assert said in words


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$\\frac{", "_hidden", "a < b & c", "%s {0}"])
def test_names_in_charts_are_not_interpreted(name):
    chart = figures.plot_metric([Metric(name, torch.arange(3), torch.arange(3.0), run=name)])
    assert _words(chart).count(name) == 2


def test_long_series_stay_small():
    long = Metric("score", torch.arange(200_000), torch.rand(200_000))
    assert len(figures.plot_metric([long])) < 60_000


def test_wide_ranges_are_drawn_on_a_logarithmic_scale():
    steep = figures.plot_metric([Metric("poses", torch.arange(4), torch.tensor([1000.0, 100.0, 10.0, 1.0]))])
    flat = figures.plot_metric([Metric("poses", torch.arange(4), torch.tensor([4.0, 3.0, 2.0, 1.0]))])
    # on a logarithmic scale a geometric series is a straight line, as an arithmetic one is on a linear scale
    assert _steps(steep) == pytest.approx([_steps(steep)[0]] * 3, rel=1e-3)
    assert _steps(flat) == pytest.approx([_steps(flat)[0]] * 3, rel=1e-3)


def _words(chart: str) -> str:
    nodes = ElementTree.fromstring(chart).iter()
    return " ".join("".join(node.itertext()) for node in nodes if node.tag.endswith("text"))


def _steps(chart: str) -> list[float]:
    line = next(p for p in re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*#0072b2', chart) if p.count("L") == 3)
    heights = [float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", line)]
    return [b - a for a, b in pairwise(heights)]
