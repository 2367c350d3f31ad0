"""Gaussian spots drawn on local patches of images, with derivatives, and the exact adjoint of drawing them.

A spot is a product of two one-dimensional Gaussians, so that each patch is an outer product of short vectors: the cost
is O(spots reach^2) whatever the size of the images. Spots are the last axis: a patch is too short for a processor's
vectors, a run of spots is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_AT_ONCE = 4096  # spots: their patches stay in a processor's cache, and threads seldom wait for the interpreter


@dataclass(frozen=True)
class Patches:
    """Where n spots in each of b images of d x d pixels lie, and their factors along x and y.

    corner : (b n,) index of each patch's first pixel in the flat, padded stack.
    x, y : (3, p, b n) the Gaussian, normalised to a sum of 1, and its first and second derivative by the position.
    shape : b, n, d.
    """

    corner: Tensor
    x: Tensor
    y: Tensor
    shape: tuple[int, int, int]

    @property
    def border(self) -> int:
        """Pixels that pad each image on every side."""
        return self.x.shape[1]

    @property
    def width(self) -> int:
        return self.shape[2] + 2 * self.border

    def parts(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Runs of spots, the indices (p, p, s) of their pixels, by y and x, in the flat, padded stack, and room for as
        many values; the memory of both is that of the next run too."""
        p = self.border
        steps = torch.arange(p, device=self.corner.device)
        offsets = (steps[:, None] * self.width + steps)[..., None]
        most = p * p * min(_AT_ONCE, len(self.corner))
        indices, values = self.corner.new_empty(most), self.x.new_empty(most)
        for start in range(0, len(self.corner), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            corner = self.corner[part]
            index, room = (memory[: p * p * len(corner)].view(p, p, -1) for memory in (indices, values))
            yield part, torch.add(corner, offsets, out=index), room


def patch_side(variance: float, reach: float = 4.0) -> int:
    """Side, odd, of the patch that holds a spot of ``variance`` (pixels^2) to ``reach`` standard deviations."""
    return 2 * math.ceil(reach * math.sqrt(variance)) + 1


def spot_patches(places: Tensor, variances: Tensor, box_size: int, side: int) -> Patches:
    """Lay spots on patches.

    Parameters
    ----------
    places : (b, n, 2) of (x, y), pixels from pixel ``d // 2``; spots outside of an image are cut at its border.
    variances : (b, n) pixels^2.
    box_size : d.
    side : of the patches, odd.
    """
    half, b, n = side // 2, places.shape[0], places.shape[1]
    place = places.double().reshape(-1, 2) + box_size // 2
    # a spot far outside is drawn on a patch at the rim, where it is zero
    nearest = place.round().clamp(-half - 1, box_size + half)
    steps = torch.arange(-half, half + 1, device=places.device, dtype=variances.dtype)
    t = steps[:, None] - (place - nearest).to(variances.dtype).T[:, None]  # (2, p, b n)
    v = variances.reshape(-1)
    g = torch.exp(-t * t / (2 * v)) / torch.sqrt(2 * math.pi * v)
    x, y = torch.stack((g, g * t / v, g * (t * t / v - 1) / v), 1)
    first = nearest.long() - half + side
    width = box_size + 2 * side
    image = torch.arange(b, device=places.device).repeat_interleave(n) * width**2
    corner = image + first[:, 1] * width + first[:, 0]
    return Patches(corner, x, y, (b, n, box_size))


def render_spots(
    patches: Patches, amplitude: Tensor, move: Tensor | None = None, widen: Tensor | None = None
) -> Tensor:
    """Draw spots, or how the images change when spots move or widen.

    Parameters
    ----------
    amplitude : (b, n) sum over the pixels of each spot (or its change).
    move : (b, n, 2) amplitude times the change of the place (x, y), pixels.
    widen : (b, n) amplitude times the change of the variance, pixels^2.

    Returns
    -------
    Images (b, d, d).
    """
    b, _, d = patches.shape
    along = amplitude.reshape(-1) * patches.x[0]
    across = None
    if move is not None:
        along = along + move[..., 0].reshape(-1) * patches.x[1]
        across = move[..., 1].reshape(-1) * patches.y[1]
    if widen is not None:
        along = along + widen.reshape(-1) / 2 * patches.x[2]
        more = widen.reshape(-1) / 2 * patches.y[2]
        across = more if across is None else across + more
    canvas = along.new_zeros(b * patches.width**2)
    for part, index, room in patches.parts():
        drawn = torch.mul(patches.y[0, :, None, part], along[:, part], out=room)
        if across is not None:
            drawn.addcmul_(across[:, None, part], patches.x[0, :, part])
        canvas.scatter_add_(0, index.reshape(-1), drawn.reshape(-1))
    inner = slice(patches.border, patches.border + d)
    return canvas.reshape(b, patches.width, patches.width)[:, inner, inner]


def _padded(images: Tensor, patches: Patches) -> Tensor:
    r = patches.border
    return torch.nn.functional.pad(images, (r, r, r, r)).reshape(-1)


def correlate_spots(images: Tensor, patches: Patches) -> Tensor:
    """The adjoint of :func:`render_spots`: (b, n, 4), inner products of the images (b, d, d) with the changes that a
    change of amplitude, a move in x, a move in y and a widening make."""
    flat = _padded(images, patches)
    result = flat.new_empty(4, len(patches.corner))
    for part, index, room in patches.parts():
        x, rows = patches.x[..., part], _along_y(patches.y[..., part], flat, index, room)
        result[0, part] = (rows[0] * x[0]).sum(0)
        result[1, part] = (rows[0] * x[1]).sum(0)
        result[2, part] = (rows[1] * x[0]).sum(0)
        result[3, part] = ((rows[0] * x[2]).sum(0) + (rows[2] * x[0]).sum(0)) / 2
    return result.T.reshape(*patches.shape[:2], 4)


def _along_y(factors: Tensor, flat: Tensor, index: Tensor, room: Tensor) -> Tensor:
    """Patches (p, p, s) under the spots, each multiplied by factors (k, p, s) and summed along y: (k, p, s) by x."""
    torch.index_select(flat, 0, index.view(-1), out=room.view(-1))
    rows = factors[:, 0, None] * room[0]
    for j in range(1, len(room)):
        rows.addcmul_(factors[:, j, None], room[j])
    return rows


def spot_information(weights: Tensor, patches: Patches) -> Tensor:
    """Weighted inner products of each spot's derivatives with each other.

    Parameters
    ----------
    weights : (b, d, d) inverse variances.

    Returns
    -------
    (b, n, 3, 3) for amplitude, x and y; moves of unit amplitude.
    """
    flat = _padded(weights, patches)
    result = flat.new_empty(3, 3, len(patches.corner))
    for part, index, room in patches.parts():
        x, y = patches.x[..., part], patches.y[..., part]
        # of the weights, by the orders of the derivatives along y
        rows = _along_y(torch.stack((y[0] * y[0], y[0] * y[1], y[1] * y[1])), flat, index, room)
        # rows and columns: amplitude, x, y, as orders of the derivative along each axis
        orders = ((0, 0), (1, 0), (0, 1))
        for i, (xi, yi) in enumerate(orders):
            for j, (xj, yj) in enumerate(orders[: i + 1]):
                result[i, j, part] = (rows[yi + yj] * x[xi] * x[xj]).sum(0)
                result[j, i, part] = result[i, j, part]
    return result.permute(2, 0, 1).reshape(*patches.shape[:2], 3, 3)
