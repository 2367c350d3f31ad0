"""From raw counts to what alignment and reconstruction need; refinement goes on seeing the counts."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from aet_tilt.found_mask import find_particle, smooth_images
from aet_tilt.noise_gain import estimate_gain
from aet_tilt.scan_distortion import correct_scan, registered
from common.data import Focus, ImageStack, InputError, Poses
from common.fourier import shift_images
from common.rotations import geodesic_distance

_SAME_VIEW = 1e-3  # degrees


@dataclass(frozen=True)
class PreprocessingSettings:
    """How the images are prepared.

    hot_pixels : replace lone pixels that no blurred image can hold.
    average_repeats : average frames of one angle, their drift undone.
    correct_scan : undo also the steady drift within such frames, taken in a row, and the jitter of their lines.
    scan_angles : degrees, multiples of 90: how the lines of the frames of one angle lie, in turn (all images turned
        back to one orientation), such as 0 90 for orthogonal pairs; empty: all along x.
    normalise_dose : estimate each image's dose from its total; else 1. Only for isolated particles.
    """

    hot_pixels: bool = True
    average_repeats: bool = True
    correct_scan: bool = False
    scan_angles: tuple[int, ...] = ()
    normalise_dose: bool = True

    def __post_init__(self) -> None:
        if any(angle % 90 for angle in self.scan_angles):
            raise InputError(f"scan angles of {self.scan_angles} degrees, expected multiples of 90")


@dataclass(frozen=True)
class Preprocessed:
    """Counts, and what was measured about them.

    stack : m images in their unit, background included; hot pixels replaced, repeated frames averaged.
    poses : of these images; shifts undone by averaging are no longer in them.
    background : (m,) level beside the particle, 0 where there is no such place.
    dose : (m,) relative, median 1.
    gain, read_noise : variance = gain * mean + read_noise^2, of single frames.
    frames : (n,) the image that each raw frame went into.
    isolated : the specimen lies inside of most images; False: a film that goes on past their borders.
    notes : what was found, in words.
    """

    stack: ImageStack
    poses: Poses
    background: Tensor
    dose: Tensor
    gain: float
    read_noise: float
    frames: Tensor
    isolated: bool
    notes: tuple[str, ...]


def preprocess(
    stack: ImageStack,
    poses: Poses,
    settings: PreprocessingSettings | None = None,
) -> Preprocessed:
    """Repair, average and measure a tilt series; see `Preprocessed`.

    Parameters
    ----------
    stack, poses : as read.

    Raises
    ------
    InputError : the numbers of images and poses differ, or a film has foci.
    """
    settings = settings or PreprocessingSettings()
    if len(stack) != len(poses):
        raise InputError(f"{len(poses)} poses for {len(stack)} images, expected one each")
    notes: list[str] = []
    noise = estimate_gain(stack.images, measured=stack.measured)
    if not noise.white:
        notes.append("the images hold no white noise: interpolated, denoised or simulated without; the gain is unknown")
    if noise.pedestal > 0:
        notes.append(f"the noise vanishes at {noise.pedestal:.4g}: a constant offset of the detector")
    images = stack.images
    if settings.hot_pixels and noise.white:
        images, count = without_hot_pixels(images, noise.gain, noise.read_noise)
        if count:
            notes.append(f"{count} hot or dead pixels are replaced by the median of their neighbours")
    frames = torch.arange(len(stack))
    if settings.average_repeats:
        frames = same_views(poses, stack.focus)
        if int(frames.max()) + 1 < len(frames):
            images, poses, jitter = average_frames(
                images, poses, frames, scan_angles=settings.scan_angles, correct=settings.correct_scan
            )
            view = "angle" if stack.focus is None else "angle and focus"
            notes.append(f"{len(frames)} frames are averaged to {len(images)} images, one for each {view}")
            if settings.correct_scan:
                notes.append(
                    f"their drift within a frame is undone, and a jitter of {jitter:.2f} pixels of their lines"
                )
    found = find_particle(images, measured=stack.measured)
    if stack.focus is not None and not bool(found.isolated.any()):
        raise InputError("foci are given, and depth of field needs an isolated particle, not a film; leave them out")
    dose = torch.ones(len(images), dtype=images.dtype, device=images.device)
    if not bool(found.isolated.all()):
        notes.append(
            f"{int((~found.isolated).sum())} images reach their border: no background or dose is measured there"
        )
    elif settings.normalise_dose:
        total = ((images - found.background[:, None, None]) * found.inside).sum((-2, -1))
        dose = total / total.median()
        off = ((dose < 0.5) | (dose > 2)).nonzero()[:, 0].tolist()
        if off:
            notes.append(f"the dose of image {', '.join(str(k + 1) for k in off[:8])} is off by more than a factor 2")
        if bool((dose <= 0).any()):
            dose = torch.ones_like(dose)
            notes.append("an image has no more in it than its background: doses are not normalised")
    focus = stack.focus
    if focus is not None:
        focus = focus[torch.tensor([int((frames == view).nonzero()[0]) for view in range(len(images))])]
    return Preprocessed(
        replace(stack, images=images, focus=focus),
        poses,
        found.background,
        dose,
        noise.gain,
        noise.read_noise,
        frames,
        bool(found.isolated.any()),
        tuple(notes),
    )


def without_hot_pixels(images: Tensor, gain: float, read_noise: float) -> tuple[Tensor, int]:
    """Replace lone hot and dead pixels (n, d, d) by the median of their eight neighbours; and how many there were.

    A blurred image cannot rise from a pixel's brightest neighbour by more than itself: hot is what passes twice that
    rise and 8 standard deviations of the noise. Dead likewise, downwards.
    """
    padded = torch.nn.functional.pad(images[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    d = images.shape[-1]
    around = torch.stack([padded[:, i : i + d, j : j + d] for i in range(3) for j in range(3) if (i, j) != (1, 1)])
    ordered = around.sort(0).values
    low, middle, high = ordered[0], (ordered[3] + ordered[4]) / 2, ordered[7]
    floor = images.flatten(1).quantile(0.05, dim=-1)[:, None, None]
    sigma = (gain * high.clamp(min=0) + read_noise**2 + gain).sqrt()
    hot = images - high > 8 * sigma + 1.5 * (high - floor).clamp(min=0)
    dead = (low - images > 8 * sigma) & (low - floor > 2.5 * (images - floor))
    bad = hot | dead
    return torch.where(bad, middle, images), int(bad.sum())


def same_views(poses: Poses, focus: Focus | None = None) -> Tensor:
    """(n,) numbers from 0 in order of appearance; equal for frames of one focus within a thousandth of a degree."""
    numbers: list[int] = []
    firsts: list[int] = []
    for k, rotation in enumerate(poses.rotations.double()):
        if firsts:
            away = geodesic_distance(rotation, poses.rotations[firsts].double())
            if focus is not None:
                away = torch.where(focus.heights[firsts] == focus.heights[k], away, math.inf)
            if float(away.min()) < _SAME_VIEW:
                numbers.append(int(away.argmin()))
                continue
        numbers.append(len(firsts))
        firsts.append(k)
    return torch.tensor(numbers)


def average_frames(
    images: Tensor,
    poses: Poses,
    frames: Tensor,
    *,
    scan_angles: tuple[int, ...] = (),
    correct: bool = False,
    max_frequency: float = 0.25,
) -> tuple[Tensor, Poses, float]:
    """The mean of the frames of each view, after the drift between them is undone.

    Parameters
    ----------
    images : (n, d, d). frames : (n,) as from :func:`same_views`.
    scan_angles : degrees, of the frames of a view in turn. correct : undo drift and jitter within frames, too.
    max_frequency : cycles per pixel; noise beyond it does not take part in finding the drift.

    Returns
    -------
    (m, d, d) in the place of each view's mean position, their poses, and the jitter of lines, pixels rms.
    """
    averaged, firsts, jitters = [], [], []
    for view in range(int(frames.max()) + 1):
        index = (frames == view).nonzero()[:, 0]
        group = images[index]
        firsts.append(int(index[0]))
        in_a_row = bool((index[1:] - index[:-1] == 1).all())
        if len(group) > 1 and correct and in_a_row:
            turns = [scan_angles[k % len(scan_angles)] // 90 if scan_angles else 0 for k in range(len(group))]
            corrected = correct_scan(group, torch.tensor(turns), max_frequency=max_frequency)
            group = corrected.images
            jitters.append(corrected.jitter**2)
        elif len(group) > 1:
            group = shift_images(group, registered(group, max_frequency))
        averaged.append(group.mean(0))
    jitter = math.sqrt(sum(jitters) / len(jitters)) if jitters else 0.0
    return torch.stack(averaged), poses[torch.tensor(firsts)], jitter


Denoising = Literal["none", "non-local means", "total variation", "wavelet", "gaussian"]


def for_reconstruction(pre: Preprocessed, *, denoising: Denoising = "none") -> ImageStack:
    """Background subtracted, dose divided out and, if asked for, denoised: not for refinement, which sees counts.

    Parameters
    ----------
    denoising : by scikit-image (an extra) with the noise that was measured, after Anscombe's transform where there is
        a gain; "gaussian" needs nothing.

    Raises
    ------
    InputError : scikit-image is not installed, or the method is unknown.
    """
    images = denoise(pre.stack.images, denoising, gain=pre.gain, read_noise=pre.read_noise)
    images = (images - pre.background[:, None, None]) / pre.dose[:, None, None]
    return replace(pre.stack, images=images)


def denoise(images: Tensor, method: Denoising, *, gain: float, read_noise: float) -> Tensor:
    """Denoised images (n, d, d); see :func:`for_reconstruction`."""
    if method == "none":
        return images
    if method == "gaussian":
        return smooth_images(images, 1.0)
    if method not in ("non-local means", "total variation", "wavelet"):
        raise InputError(f"the denoising is {method!r}, expected non-local means, total variation, wavelet or gaussian")
    try:
        restoration = importlib.import_module("skimage.restoration")
        if method == "wavelet":
            importlib.import_module("pywt")
    except ImportError:
        raise InputError(
            f"denoising by {method} needs scikit-image and PyWavelets; pip install nanospr[denoise]"
        ) from None
    # generalised Anscombe transform: noise of standard deviation 1, whatever the brightness
    offset = 0.375 * gain**2 + read_noise**2
    stable = 2 / gain * (gain * images + offset).clamp(min=0).sqrt() if gain > 0 else images / (read_noise or 1.0)
    cleaned = []
    for image in stable.double().cpu().numpy():
        if method == "non-local means":
            options = {"patch_size": 5, "patch_distance": 7, "h": 0.8, "sigma": 1.0, "fast_mode": True}
            result = restoration.denoise_nl_means(image, **options)
        elif method == "total variation":
            result = restoration.denoise_tv_chambolle(image, weight=1.0)
        else:
            result = restoration.denoise_wavelet(image, sigma=1.0, rescale_sigma=False)
        cleaned.append(torch.from_numpy(result))
    smooth = torch.stack(cleaned).to(images)
    if gain <= 0:
        return smooth * (read_noise or 1.0)
    # the closed-form inverse of Makitalo and Foi (2011) to leading order: unbiased for all but the lowest counts
    return (smooth.square() / 4 * gain) - gain / 8 - read_noise**2 / gain
