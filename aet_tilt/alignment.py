"""Alignment by reprojection: a quick reconstruction and the poses of all images, improved in turns.

Each round corrects the volume by the images' residuals, weighted in Fourier space by how densely the views lie there,
keeps it positive and inside its support, and then moves every image by one Gauss-Newton step towards its reprojection,
after Pryor et al. [1]_ and Yang et al. [2]_. All of it happens on images resampled to the resolution asked for.

References
----------
.. [1] Pryor et al., "GENFIRE", Sci. Rep. 7, 10409 (2017). doi:10.1038/s41598-017-09847-1
.. [2] Yang et al., "Determining the three-dimensional atomic structure of an amorphous solid",
   Nature 592, 60 (2021). doi:10.1038/s41586-021-03354-0
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from aet_tilt.angle_refinement import pose_step, turned, without_common_translation
from aet_tilt.common_line import centre_of_mass, common_line_shifts, find_tilt_axis, turn_views
from aet_tilt.found_mask import find_particle
from aet_tilt.reconstruction.operator import make_operator
from common.data import ImageStack, InputError, Poses
from common.fourier import crop_or_pad, irfft2_origin, resample_fourier, rfft2_origin
from common.gridding import interpolate_points, spread_points, transform_size
from common.iteration import Observer, State, run
from common.masks import soft_ball
from common.projection import slice_frequencies, slice_points
from common.rotations import geodesic_distance

_PAD = 1.25  # the gridding wants the particle inside 0.4 of the box
_DAMPING = 0.9  # of the volume's update, relative to the largest that is stable
_TRIAL_ROUNDS = 4
# of an image that does not fit: low-resolution volumes of few views explain zone axes worse, by half a hundredth
_LEAST_POWER = 0.02
_NEAR_VIEWS = 9


@dataclass(frozen=True)
class AlignmentSettings:
    """How images are aligned.

    start : "mass" (centre of mass and common line), "given" (the shifts of the poses), or "auto": what leaves the
        smaller residual.
    axis_reach : degrees about the nominal tilt axis that are searched by the common line; 0 leaves it.
    resolution : finest detail used, angstrom.
    largest_box : pixels of the resampled images at most; bounds time and memory.
    angle_sigma : prior of each image's three angles, degrees rms; 0 leaves them.
    n_volume_steps : corrections of the volume each round.
    max_iterations : rounds at most.
    tolerance : ends when no image moves by more in a round, pixels as measured.
    misfit : an image is flagged when the share of its power that the volume does not explain stands out from that of
        like views by this many robust standard deviations, and by two hundredths at least.
    """

    start: Literal["auto", "mass", "given"] = "auto"
    axis_reach: float = 0.0
    resolution: float = 1.2
    largest_box: int = 128
    angle_sigma: float = 0.0
    n_volume_steps: int = 2
    max_iterations: int = 30
    tolerance: float = 0.005
    misfit: float = 6.0


@dataclass(frozen=True)
class AlignmentState(State):
    """poses : refined, shifts in angstrom. values : (d, d, d) of the resampled, padded box. scales, offsets : (n,) of
    ``image = scale * projection + offset``. residuals : (n,) rms of image minus model over rms of the image. misfit :
    (n,) bool. moved : the largest step of the last round, pixels as measured."""

    poses: Poses
    values: Tensor
    scales: Tensor
    offsets: Tensor
    residuals: Tensor
    misfit: Tensor
    moved: float


@dataclass(frozen=True)
class AlignmentData:
    """What stays the same: images (n, d, d) resampled, background-free, of mean contrast 1; weights (d, d) of what was
    measured; filters (n, d, d // 2 + 1) of the volume's update; support (d, d, d); pixel_size of the resampled images;
    measured_pixel: of the original ones; nominal rotations (n, 3, 3)."""

    images: Tensor
    weights: Tensor
    filters: Tensor
    support: Tensor
    pixel_size: float
    measured_pixel: float
    nominal: Tensor


def align(
    stack: ImageStack,
    poses: Poses,
    settings: AlignmentSettings | None = None,
    *,
    observers: Sequence[Observer] = (),
    name: str = "alignment",
) -> AlignmentState:
    """Find where the specimen's origin lies in each image and, if asked for, its angles.

    Parameters
    ----------
    stack : n >= 3 images of one specimen, brighter than its surroundings.
    poses : nominal.

    Returns
    -------
    AlignmentState; its poses belong to ``stack`` as given (nothing is resampled). A common movement of the specimen
    (three numbers) and, with angles, a common turn cannot be told: the first stays that of the start, the second is 0.

    Raises
    ------
    InputError : the numbers of images and poses differ, fewer than 3, an empty image, or impossible settings.

    Notes
    -----
    Angles refined against a volume of few views follow its errors: rotations about the tilt axis are known no better
    than about half a degree this way, and are left to the refinement of atoms unless ``angle_sigma`` asks for them.
    """
    settings = settings or AlignmentSettings()
    data, starts = prepare(stack, poses, settings)
    first = [start(data, each) for each in starts]
    if len(first) > 1:
        trials = [_trial(each, data, settings) for each in first]
        first = [first[min(range(len(trials)), key=trials.__getitem__)]]
    return run(name, first[0], partial(step, data=data, settings=settings), observers)


def start_poses(stack: ImageStack, poses: Poses) -> Poses:
    """Poses with the shifts of centre of mass and common line, for as few as two images of an isolated particle."""
    found = find_particle(stack.images, measured=stack.measured)
    images = (stack.images - found.background[:, None, None]) * stack.inside
    shifts = centre_of_mass(images, found.inside)
    shifts = common_line_shifts(images, poses.rotations, shifts, max(4, stack.box_size // 4))
    return Poses(poses.rotations, shifts * stack.pixel_size)


def _check(stack: ImageStack, poses: Poses, settings: AlignmentSettings) -> None:
    if len(stack) != len(poses):
        raise InputError(f"{len(poses)} poses for {len(stack)} images, expected one each")
    if len(stack) < 3:
        raise InputError(f"{len(stack)} images, expected at least 3 to align")
    for name in ("resolution", "tolerance", "misfit"):
        if not (math.isfinite(getattr(settings, name)) and getattr(settings, name) > 0):
            raise InputError(f"{name} is {getattr(settings, name)}, expected a positive number")
    for name in ("largest_box", "max_iterations", "n_volume_steps"):
        least = 16 if name == "largest_box" else 1
        if getattr(settings, name) < least:
            raise InputError(f"{name} is {getattr(settings, name)}, expected at least {least}")
    if settings.angle_sigma < 0 or settings.axis_reach < 0:
        raise InputError("angle_sigma and axis_reach are degrees, expected 0 or more")


def prepare(stack: ImageStack, poses: Poses, settings: AlignmentSettings) -> tuple[AlignmentData, list[Poses]]:
    """The resampled problem, and the poses to start from."""
    _check(stack, poses, settings)
    d, measured = stack.box_size, stack.inside
    found = find_particle(stack.images, measured=measured)
    images = (stack.images - found.background[:, None, None]) * measured
    sums = (images * found.inside).sum((-2, -1))
    if not bool(found.isolated.all()):
        sums = images.sum((-2, -1))  # a film: all that was measured
    if bool((sums <= 0).any()):
        k = int((sums <= 0).nonzero()[0])
        raise InputError(f"image {k + 1} is empty: nothing stands out of its background; leave it out")
    images = images * (sums.mean() / sums)[:, None, None] / images.std()
    rotations, isolated = poses.rotations, bool(found.isolated.all())
    padded = 2 * round(_PAD * d / 2)
    wanted = 2 * math.ceil(padded * stack.pixel_size / settings.resolution)
    box = min(padded, wanted, settings.largest_box) // 2 * 2
    if settings.axis_reach > 0:
        turn, _ = find_tilt_axis(images, rotations, max(4, box // 4), reach=settings.axis_reach)
        rotations = turn_views(rotations, turn)
    starts = []
    if settings.start != "mass":
        starts.append(Poses(rotations, poses.shifts))
    if settings.start != "given" and isolated:
        shifts = centre_of_mass(images, found.inside)
        shifts = common_line_shifts(images, rotations, shifts, max(4, box // 4))
        starts.append(Poses(rotations, shifts * stack.pixel_size))
    starts = starts or [Poses(rotations, poses.shifts)]
    pixel = stack.pixel_size * padded / box
    small = resample_fourier(crop_or_pad(images, padded, 2), box, 2)
    weights = resample_fourier(crop_or_pad(measured.to(images.dtype)[None], padded, 2), box, 2)[0].clamp(0, 1)
    radius = box / 2 - 2.0
    if isolated:
        area = found.inside.sum((-2, -1)).to(images.dtype).median()
        radius = min(radius, 1.3 * float((area / math.pi).sqrt()) * box / padded + 2)
    support = soft_ball(box, radius, 2.0, dtype=images.dtype, device=images.device)
    data = AlignmentData(small, weights, small.new_zeros(0), support, pixel, stack.pixel_size, rotations)
    return replace(data, filters=_filters(rotations, support)), starts


def _filters(rotations: Tensor, support: Tensor) -> Tensor:
    """(n, d, d // 2 + 1): one over the density of the views' points around each, scaled to a stable update."""
    d = support.shape[-1]
    frequencies, index = slice_frequencies(d, (d - 1) // 2, dtype=support.dtype, device=support.device)
    points = slice_points(rotations, frequencies)
    once = torch.where(frequencies[:, 0] == 0, 0.5, 1.0).to(support.dtype).repeat(len(rotations))
    grid = spread_points(once, points, transform_size((d - 1) // 2))
    grid = grid + grid.flip((0, 1, 2))
    density = interpolate_points(grid.to(support.dtype.to_complex()), points).real.view(len(rotations), -1)
    filters = density.new_zeros(len(rotations), d * (d // 2 + 1)).index_copy(1, index, 1 / density)
    filters = filters.view(-1, d, d // 2 + 1)
    still = make_operator(Poses(rotations, rotations.new_zeros(len(rotations), 2)), d, 1.0)
    probe = support / support.norm()
    generator = torch.Generator().manual_seed(0)
    probe = probe * (1 + torch.randn(d, d, d, generator=generator).to(support))
    largest = 1.0
    for _ in range(15):  # the power method
        probe = probe / probe.norm()
        probe_next = still.backproject(_filtered(still.project(probe), filters)) * support
        largest, probe = float((probe * probe_next).sum()), probe_next
    return filters * (_DAMPING / largest)


def _filtered(images: Tensor, filters: Tensor) -> Tensor:
    return irfft2_origin(rfft2_origin(images) * filters, images.shape[-1])


def start(data: AlignmentData, poses: Poses) -> AlignmentState:
    """No volume yet; the poses as they are."""
    n, d = len(poses), data.images.shape[-1]
    one, zero = data.images.new_ones(n), data.images.new_zeros(n)
    nothing = torch.zeros(n, dtype=torch.bool, device=one.device)
    return AlignmentState(0, False, poses, data.images.new_zeros(d, d, d), one, zero, one.clone(), nothing, math.inf)


def correct_volume(state: AlignmentState, data: AlignmentData, n_steps: int) -> Tensor:
    """The volume after ``n_steps`` corrections by the filtered residuals, positive and inside the support."""
    values, unit = state.values, Poses(state.poses.rotations, state.poses.shifts / data.pixel_size)
    operator = make_operator(unit, values.shape[-1], 1.0)
    scales, offsets = state.scales[:, None, None], state.offsets[:, None, None]
    for _ in range(n_steps):
        model = operator.project(values)
        residual = (data.images - scales * model - offsets) * data.weights
        filtered = _filtered(residual, data.filters) * data.weights  # the same on both sides, or it need not converge
        values = (values + operator.backproject(filtered) * data.support).clamp(min=0)
    return values


def step(state: AlignmentState, data: AlignmentData, settings: AlignmentSettings) -> AlignmentState:
    """Correct the volume, then move every image towards its reprojection."""
    values = correct_volume(state, data, settings.n_volume_steps)
    images = (data.images - state.offsets[:, None, None]) / state.scales[:, None, None]
    shifts = state.poses.shifts / data.pixel_size
    sigma = settings.angle_sigma or None
    found = pose_step(images, data.weights, values, state.poses.rotations, shifts, angle_sigma=sigma)
    moves = without_common_translation(found.shifts, state.poses.rotations)
    rotations = state.poses.rotations
    if sigma is not None:
        rotations = turned(rotations, found.turns, data.nominal)
    scales = state.scales * found.scales.clamp(0.5, 2)
    moved = float(moves.abs().max()) * data.pixel_size / data.measured_pixel
    iteration = state.iteration + 1
    return AlignmentState(
        iteration,
        iteration >= settings.max_iterations or moved < settings.tolerance,
        Poses(rotations, (shifts + moves) * data.pixel_size),
        values,
        scales / scales.mean(),
        state.offsets + state.scales * found.offsets,
        found.residual,
        stands_out(found.residual, rotations, settings.misfit),
        moved,
    )


def stands_out(residuals: Tensor, rotations: Tensor, limit: float) -> Tensor:
    """(n,) bool: squared residuals `_LEAST_POWER` and ``limit`` robust standard deviations above what they are, in the
    median, in the nearest views: the missing wedge and the particle's shape change them slowly."""
    power = residuals.square()
    apart = geodesic_distance(rotations[:, None], rotations)
    near = apart.topk(min(_NEAR_VIEWS, len(apart)), largest=False).indices
    above = power - power[near].median(1).values
    return above > max(limit * 1.4826 * float(above.abs().median()), _LEAST_POWER)


def _trial(state: AlignmentState, data: AlignmentData, settings: AlignmentSettings) -> float:
    for _ in range(_TRIAL_ROUNDS):
        state = step(state, data, settings)
    return float(state.residuals.square().mean())
