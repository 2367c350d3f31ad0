"""The projector of a tilt series and its exact adjoint, from the exact poses.

Tilts about the y axis go slice by slice (:mod:`aet_tilt.reconstruction.tilt_operator`), other poses through the
three-dimensional gridding of :mod:`common.projection`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from aet_tilt.reconstruction.tilt_operator import tilt_operator
from common.data import ImageStack, InputError, Poses, Volume
from common.projection import backproject, project

_SINGLE_AXIS = 2e-6  # how far the y axis may move in float32 poses about y


class Operator(Protocol):
    """A linear projector: ``project`` (d, d, d) -> (n, d, d), ``backproject`` its exact adjoint.

    box_size : d. pixel_size : angstrom. ``subset(index)`` projects along some of the poses only.
    """

    @property
    def poses(self) -> Poses: ...

    @property
    def box_size(self) -> int: ...

    @property
    def pixel_size(self) -> float: ...

    def __len__(self) -> int: ...

    def project(self, values: Tensor) -> Tensor: ...

    def backproject(self, images: Tensor) -> Tensor: ...

    def subset(self, index: Tensor) -> Operator: ...


@dataclass(frozen=True)
class GridOperator:
    """Any poses, by gridding in three dimensions; see :func:`common.projection.project`."""

    poses: Poses
    box_size: int
    pixel_size: float

    def __len__(self) -> int:
        return len(self.poses)

    def project(self, values: Tensor) -> Tensor:
        """(n, d, d) from (d, d, d)."""
        return project(Volume(values, self.pixel_size), self.poses).images

    def backproject(self, images: Tensor) -> Tensor:
        """(d, d, d) from (n, d, d)."""
        return backproject(ImageStack(images, self.pixel_size), self.poses).values

    def subset(self, index: Tensor) -> GridOperator:
        """The same for some of the poses."""
        return replace(self, poses=self.poses[index])


@dataclass(frozen=True)
class WindowedOperator:
    """Another operator, whose images were measured in part: elsewhere they are 0, and say nothing.

    operator : of whole images. window : of their shape, 1 where they were measured, 0 elsewhere.
    """

    operator: Operator
    window: Tensor

    @property
    def poses(self) -> Poses:
        return self.operator.poses

    @property
    def box_size(self) -> int:
        return self.operator.box_size

    @property
    def pixel_size(self) -> float:
        return self.operator.pixel_size

    def __len__(self) -> int:
        return len(self.operator)

    def project(self, values: Tensor) -> Tensor:
        return self.operator.project(values) * self.window

    def backproject(self, images: Tensor) -> Tensor:
        return self.operator.backproject(images * self.window)

    def subset(self, index: Tensor) -> WindowedOperator:
        """The same for some of the poses."""
        return replace(self, operator=self.operator.subset(index))


def is_single_axis(poses: Poses) -> bool:
    """Whether every pose is a tilt about the y axis, to the rounding of float32."""
    axis = poses.rotations.new_tensor([0.0, 1.0, 0.0])
    return bool(((poses.rotations[:, 1] - axis).abs() <= _SINGLE_AXIS).all())


def make_operator(poses: Poses, box_size: int, pixel_size: float) -> Operator:
    """The projector for these poses.

    Parameters
    ----------
    poses : n >= 1 poses; device and dtype of the operator are theirs.
    box_size : d, pixels, of images and volume.
    pixel_size : angstrom.

    Returns
    -------
    ``project(values)`` (n, d, d), sums along the beam times the pixel size, shifted; ``backproject`` its exact adjoint.
    Tilts about y are exact to 1e-6 for volumes that fill the box (nothing wraps round along x; y shifts wrap); others
    are as exact as :func:`common.projection.project`, and wrap round.

    Raises
    ------
    InputError : no poses.
    """
    if not len(poses):
        raise InputError("there are no images, expected at least one")
    if is_single_axis(poses):
        return tilt_operator(poses, box_size, pixel_size)
    return GridOperator(poses, box_size, pixel_size)
