import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import torch

from common.report import FourierShellCorrelation, Metric, figures


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
    assert "1000" in _words(steep)
    assert _steps(steep) == pytest.approx([_steps(steep)[0]] * 3, rel=1e-3)
    assert _steps(flat) == pytest.approx([_steps(flat)[0]] * 3, rel=1e-3)


def _words(chart: str) -> str:
    nodes = ElementTree.fromstring(chart).iter()
    return " ".join("".join(node.itertext()) for node in nodes if node.tag.endswith("text"))


def _steps(chart: str) -> list[float]:
    line = next(p for p in re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*#0072b2', chart) if p.count("L") == 3)
    heights = [float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", line)]
    return [b - a for a, b in pairwise(heights)]
