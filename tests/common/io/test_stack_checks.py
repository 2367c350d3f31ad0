from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data import ImageStack, InputError
from common.io import check_stack, read_particles

Write = Callable[..., Path]


def _check(path: Path, **options: int) -> tuple[str, ...]:
    particles = read_particles(path)
    return check_stack(particles.stack, particles.image_names, source=str(path), **options)


@pytest.mark.parametrize("size", [15, 16])
def test_good_images_pass_without_a_word(tmp_path: Path, images: np.ndarray, write_mrcs: Write, size: int) -> None:
    assert _check(write_mrcs(tmp_path / "a.mrcs", images[:, :size, :size])) == ()


@pytest.mark.parametrize("n", [1, 2, 19])
def test_too_few_images_are_refused_by_number(tmp_path: Path, images: np.ndarray, write_mrcs: Write, n: int) -> None:
    path = write_mrcs(tmp_path / "a.mrcs", images[:n])
    with pytest.raises(InputError, match=rf"a\.mrcs: holds {n} images?, expected at least 20; add images"):
        _check(path)
    assert _check(path, minimum_images=1) == ()


def test_an_empty_stack_is_refused() -> None:
    with pytest.raises(InputError, match="holds 0 images, expected at least 20"):
        check_stack(ImageStack(torch.zeros(0, 8, 8), 1.0), ())


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.nan, r"image 8 \(000008@a\.mrcs\) holds 1 NaN or infinite pixels"),
        (np.inf, r"image 8 .* holds 1 NaN or infinite"),
    ],
)
def test_nan_is_named_by_image(tmp_path: Path, images: np.ndarray, write_mrcs: Write, value: float, says: str) -> None:
    path = write_mrcs(tmp_path / "a.mrcs", images)
    images[7, 3, 2] = value
    raw = path.read_bytes()
    path.write_bytes(raw[:1024] + images.tobytes())  # mrcfile's own header keeps its statistics
    with pytest.raises(InputError, match=rf"a\.mrcs: {says}"):
        _check(path)


def test_a_constant_image_is_named(tmp_path: Path, images: np.ndarray, write_mrcs: Write) -> None:
    images[11] = 3.5
    with pytest.raises(InputError, match=r"a\.mrcs: image 12 \(000012@a\.mrcs\) is constant \(every pixel is 3\.5\)"):
        _check(write_mrcs(tmp_path / "a.mrcs", images))


def test_a_clipped_image_is_saturated(tmp_path: Path, images: np.ndarray, write_mrcs: Write) -> None:
    images[5] = np.minimum(images[5], np.quantile(images[5], 0.95))
    with pytest.raises(InputError, match=r"a\.mrcs: image 6 \(000006@a\.mrcs\) is saturated: 5\.\d % of its pixels"):
        _check(write_mrcs(tmp_path / "a.mrcs", images))


def test_pixels_at_the_limit_of_the_integers_are_saturated(tmp_path: Path, write_mrcs: Write) -> None:
    counts = np.random.default_rng(0).poisson(1000, size=(24, 32, 32)).astype(np.int16)
    counts[3, 0, :5] = 32767
    with pytest.raises(InputError, match=r"image 4 .* is saturated: 0\.49 % of its pixels are at its maximum 32767"):
        _check(write_mrcs(tmp_path / "a.mrcs", counts))


@pytest.mark.parametrize("dose", [0.05, 0.5, 3.0, 100.0])
def test_poisson_counts_are_not_saturated_however_few(tmp_path: Path, write_mrcs: Write, dose: float) -> None:
    counts = np.random.default_rng(0).poisson(dose, size=(40, 32, 32)).astype(np.int8 if dose < 20 else np.int16)
    assert _check(write_mrcs(tmp_path / "a.mrcs", counts)) == ()


def test_a_copy_is_named_with_its_original(tmp_path: Path, images: np.ndarray, write_mrcs: Write) -> None:
    images[20] = images[4]
    says = r"a\.mrcs: image 21 \(000021@a\.mrcs\) is a copy of image 5 \(000005@a\.mrcs\)"
    with pytest.raises(InputError, match=says):
        _check(write_mrcs(tmp_path / "a.mrcs", images))


def test_images_far_from_the_others_are_warned_of(tmp_path: Path, images: np.ndarray, write_mrcs: Write) -> None:
    images[2] *= 40
    images[9] += 30
    warnings = _check(write_mrcs(tmp_path / "a.mrcs", images))
    assert len(warnings) == 2
    assert "the mean of 1 images" in warnings[0] or "the mean of 2 images" in warnings[0]
    assert "10" in warnings[0]
    assert warnings[1].endswith("stands far out: image 3")


def test_equal_means_are_no_reason_to_warn() -> None:
    images = torch.randn(30, 16, 16, generator=torch.Generator().manual_seed(0))
    images = (images - images.mean((1, 2), keepdim=True)) / images.std((1, 2), keepdim=True)
    assert check_stack(ImageStack(images, 1.0), [str(k) for k in range(30)]) == ()
