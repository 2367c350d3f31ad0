"""The maps that a run writes: the whole, its halves, and where these agree."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.atoms.model import AtomicModel
from common.data import ImageStack, Poses, Volume
from common.image_formation import contrast_transfer
from common.masks import tight_mask
from common.reconstruction import accumulate, shell_density, solve_wiener
from common.resolution import FSC, fourier_shell_correlation, last_agreement
from spr.refinement import RefinedMap
from spr.seen import Seen

_FINEST = 0.9  # angstrom, of the maps that are written
_UNTRANSFERRED = 0.3  # 1/angstrom, below which shells say nothing
_PRIOR = 0.02  # of the map, relative to the largest data weight of a shell


@dataclass(frozen=True)
class Maps:
    """Maps on the images' grid. halves, fsc : from poses of halves that never met."""

    volume: Volume
    halves: tuple[Volume, Volume]
    mask: Volume
    fsc: FSC


def resolution(maps: Maps) -> float:
    """Where the half maps stop to agree, angstrom.

    Shells that the microscope does not transfer, at low frequencies in phase contrast, hold nothing that could agree.
    """
    return last_agreement(maps.fsc, beyond=_UNTRANSFERRED, finest=_FINEST)


def map_transfer(seen: Seen, rows: Tensor, model: AtomicModel | None) -> Tensor:
    """What the microscope and the whitening do to projections: (n, d, d // 2 + 1), with refined focus where known."""
    stack, _, noise = seen.part(rows)
    filter_ = noise.filter[None].float()
    if stack.optics is None:
        return filter_ / noise.scale[:, None, None]
    optics = stack.optics
    if model is not None:
        focus = optics.defocus.clone()
        focus[:, :2] += model.defocus_offsets[:, None].to(focus)
        spread = torch.full_like(optics.focal_spread, float(model.parameters.focal_spread))
        optics = replace(optics, defocus=focus, focal_spread=spread)
    level = (noise.mean / noise.scale)[:, None, None]
    return contrast_transfer(optics, stack.box_size, stack.pixel_size).float() * filter_ * level


def final_maps(seen: Seen, refined: RefinedMap, model: AtomicModel | None = None) -> Maps:
    """The maps that are written, on the images' grid.

    The map is from the final poses and so lies in the frame of the atoms. The half maps are from the poses of the map
    refinement, in which the halves never met, so that their agreement is honest.
    """
    _, white, _ = seen.part(seen.fitted)
    transfer = map_transfer(seen, seen.fitted, model)
    weights = refined.weights.float()
    halves = []
    for number in (0, 1):
        rows = ((refined.half == number) & (weights > 0)).nonzero()[:, 0]
        halves.append(weighted_map(white[rows], refined.poses[rows], transfer[rows], weights[rows]))
    final, share = (refined.poses, weights) if model is None else (model.poses, model.weights.float())
    whole = weighted_map(white, Poses(final.rotations.float(), final.shifts.float()), transfer, share)
    mask = tight_mask(whole.values)
    fsc = fourier_shell_correlation(halves[0], halves[1], mask)
    return Maps(whole, (halves[0], halves[1]), Volume(mask, whole.voxel_size), fsc)


def weighted_map(white: ImageStack, poses: Poses, transfer: Tensor, weights: Tensor) -> Volume:
    """The Wiener-filtered map of whitened images.

    The prior is the same in all shells, a fraction of the strongest data weight: where the microscope transfers
    nothing, as at low frequencies in phase contrast, the map is empty instead of full of noise.
    """
    shell = min((white.box_size - 1) // 2, int(white.box_size * white.pixel_size / _FINEST))
    images, shifts = white.images.float(), poses.shifts / white.pixel_size
    numerator, density = accumulate(images, poses.rotations, shifts, ctf=transfer, weights=weights, max_shell=shell)
    level = shell_density(density)
    prior = torch.full_like(level, _PRIOR * float(level.max()))
    return Volume(solve_wiener(numerator, density, white.box_size, prior) / white.pixel_size, white.pixel_size)
