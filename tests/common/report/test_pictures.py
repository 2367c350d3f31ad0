import base64
import io

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from common.report import pick_examples
from common.report.pictures import central_slices, data_address, grey_png, grey_window, projections, smooth
from common.report.sections import number, ranges, scale_bar, text


def test_png_holds_the_image():
    values = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    decoded = imread(io.BytesIO(base64.b64decode(data_address(grey_png(values, 0, 5)).split(",")[1])))
    assert decoded.shape == (2, 3)
    assert decoded == pytest.approx(values.numpy() / 5, abs=0.5 / 255)


def test_png_clips_and_shows_nan_as_black():
    decoded = imread(io.BytesIO(grey_png(torch.tensor([[-9.0, 9.0, float("nan"), float("inf")]]), 0, 1)))
    assert decoded.tolist() == [[0, 1, 0, 1]]


def test_grey_window_ignores_outliers_and_nan():
    values = torch.linspace(0, 1, 1001)
    values[500] = 1e9
    values[501] = float("nan")
    low, high = grey_window(values, 0.01)
    assert low == pytest.approx(0.01, abs=0.002)
    assert high == pytest.approx(0.99, abs=0.002)


def test_smoothing_keeps_the_mean_and_has_the_stated_width():
    image = torch.zeros(33, 33)
    image[16, 16] = 1
    smoothed = smooth(image, 2.0)
    assert float(smoothed.sum()) == pytest.approx(1)
    x = torch.arange(33) - 16
    assert float((smoothed.sum(0) * x**2).sum()) == pytest.approx(4, rel=1e-3)


@pytest.mark.parametrize("size", [6, 7])
def test_slices_pass_through_the_origin_and_keep_their_axes(size):
    volume = torch.zeros(size, size, size)
    volume[size // 2, size // 2, size // 2 + 1] = 1  # one voxel along +x
    volume[size // 2, size // 2 + 2, size // 2] = 2  # two voxels along +y
    slices = central_slices(volume)
    middle = size // 2
    assert slices["yx"][middle, middle + 1] == 1
    assert slices["yx"][middle + 2, middle] == 2
    assert slices["zx"][middle, middle + 1] == 1
    assert slices["zy"][middle, middle + 2] == 2
    assert all(float(p.sum()) == 3 for p in projections(volume).values())


def test_examples_are_the_best_the_median_and_the_worst():
    scores = torch.tensor([5.0, 1.0, float("nan"), 9.0, 3.0, 7.0, 2.0, 8.0, 4.0, 6.0])
    index, groups = pick_examples(scores, each=2)
    assert scores[index].tolist() == [9, 8, 6, 5, 2, 1]
    assert groups == ("best", "best", "median", "median", "worst", "worst")


@pytest.mark.parametrize("n", range(8))
def test_no_example_is_shown_twice(n):
    index, groups = pick_examples(torch.arange(float(n)), each=3)
    assert len(set(index.tolist())) == len(index) == len(groups) <= n


def test_ranges():
    assert ranges([5, 1, 2, 3, 9, 10]) == "1–3, 5, 9–10"
    assert ranges([]) == ""


def test_numbers_for_reading():
    assert number(1.234, 2, "Å") == "1.23 Å"
    assert number(-0.5, 1) == "−0.5"
    assert number(-0.001, 1) == "0.0"
    assert number(float("nan"), 1, "Å") == number(None) == "not known"
    assert number(np.float32(2), 0) == "2"


def test_scale_bar_has_a_round_length_of_at_most_a_quarter():
    assert "5 Å" in scale_bar(28.0)
    assert "width:17.86%" in scale_bar(28.0)
    assert "200 Å" in scale_bar(1000.0)
    assert scale_bar(float("nan")) == scale_bar(0.0) == ""


def test_text_is_safe_in_tags_and_attributes():
    assert text("<a href=\"x\" b='y'>&") == "&lt;a href=&quot;x&quot; b=&#x27;y&#x27;&gt;&amp;"
