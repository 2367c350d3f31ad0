"""What every reconstruction starts from: the projector, the images, and where matter may be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aet_tilt.reconstruction.depth_of_field import focused_operator
from aet_tilt.reconstruction.levelling import level
from aet_tilt.reconstruction.operator import Operator, WindowedOperator, make_operator
from aet_tilt.reconstruction.tilt_operator import TiltOperator
from common.data import ImageStack, InputError, Poses
from common.fourier import shift_images
from common.iteration import State


@dataclass(frozen=True)
class Problem:
    """A linear problem ``project(values) = images``.

    operator : of the n poses. images : (n, d, d). support : (d, d, d) of 0 and 1, 1 where matter may be.
    """

    operator: Operator
    images: Tensor
    support: Tensor

    def subset(self, index: Tensor) -> Problem:
        """The same for some of the images."""
        return Problem(self.operator.subset(index), self.images[index], self.support)


@dataclass(frozen=True)
class VolumeState(State):
    """values : (d, d, d), units of the images per angstrom.

    r1 : of the images used, before the last step; 1 at first.
    """

    values: Tensor
    r1: float


def make_problem(stack: ImageStack, poses: Poses, support: Tensor | None = None) -> Problem:
    """The problem of a stack without background, with the whole box as support unless another is given.

    Images whose tilt axis lies at an angle in their plane are turned first, so that it runs along y. Pixels that were
    not measured are left out.

    Raises
    ------
    InputError : no images, or the numbers of images and poses, dtypes, devices or the support's shape do not fit.
    """
    d = stack.box_size
    if len(stack) != len(poses):
        raise InputError(f"{len(poses)} poses for {len(stack)} images, expected one each")
    for name, other in (("rotations", poses.rotations), ("shifts", poses.shifts)):
        if (other.dtype, other.device) != (stack.images.dtype, stack.images.device):
            raise InputError(
                f"the images are {stack.images.dtype} on {stack.images.device} and the {name} are {other.dtype} on "
                f"{other.device}, expected the same: convert one with .to()"
            )
    if support is None:
        support = stack.images.new_ones(d, d, d)
    if support.shape != (d, d, d):
        raise InputError(
            f"the support has shape {tuple(support.shape)}, expected {(d, d, d)} as the images have {d} px"
        )
    if len(poses):
        stack, poses = level(stack, poses)
    operator, support = operator_of(stack, poses), support.to(stack.images)
    if stack.measured is None:
        return Problem(operator, stack.images, support)
    window = stack.measured.to(stack.images)
    return Problem(WindowedOperator(operator, window), stack.images * window, support)


def operator_of(stack: ImageStack, poses: Poses) -> Operator:
    """The projector of a stack: with depth of field where the stack's is known."""
    if stack.focus is None or stack.focus.opening == 0:
        return make_operator(poses, stack.box_size, stack.pixel_size)
    return focused_operator(poses, stack.box_size, stack.pixel_size, stack.focus)


def r_factor(predicted: Tensor, measured: Tensor) -> float:
    """R1: the sum of absolute differences over the sum of absolute measured values."""
    return float((predicted - measured).abs().sum() / measured.abs().sum().clamp(min=torch.finfo(measured.dtype).tiny))


def squared_norm(problem: Problem, *, n_iterations: int = 12) -> float:
    """The largest eigenvalue of ``support A' A support`` by the power method, with 2 % to spare.

    The eigenvector is smooth and positive, so that the support itself is a good start. The estimates rise to the
    eigenvalue; they end where one gains less than a thousandth.
    """
    values = problem.support / problem.support.norm().clamp(min=1e-30)
    norm = 0.0
    for _ in range(n_iterations):
        images = problem.operator.project(values)
        values = problem.operator.backproject(images) * problem.support
        before, norm = norm, float(values.norm())
        if norm == 0:
            raise InputError("the support is empty or never projects onto the images, expected some voxels of 1")
        values = values / norm
        if norm < 1.001 * before:
            break
    return 1.02 * norm


def with_support(problem: Problem, support: Tensor) -> Problem:
    """The same problem with another support (d, d, d)."""
    return replace(problem, support=support.to(problem.images))


def row_band(problem: Problem, n_rows: int) -> Problem:
    """The same problem for the middle rows of the images alone, where tilts about y let every row stand for itself.

    Returns
    -------
    Images (n, r, d) and support (d, r, d), r = min(n_rows, d); the problem as it is when the poses mix the rows.
    """
    operator, d = problem.operator, problem.images.shape[-1]
    window = operator.window if isinstance(operator, WindowedOperator) else None
    whole = operator.operator if isinstance(operator, WindowedOperator) else operator
    if not isinstance(whole, TiltOperator) or n_rows >= d:
        return problem
    still = torch.zeros_like(operator.poses.shifts)
    along_y = torch.stack((still[:, 0], operator.poses.shifts[:, 1]), -1)
    images = shift_images(problem.images, -along_y / operator.pixel_size)
    rows = slice(d // 2 - n_rows // 2, d // 2 - n_rows // 2 + n_rows)
    level = Poses(operator.poses.rotations, operator.poses.shifts - along_y)
    cut: Operator = make_operator(level, d, operator.pixel_size)
    if window is not None:
        cut = WindowedOperator(cut, window[rows])
    return Problem(cut, images[:, rows], problem.support[:, rows])
