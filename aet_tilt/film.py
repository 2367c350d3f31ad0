"""Films, which go on past the borders of their images: a volume wider than these, and atoms where it has maxima.

At a high tilt every ray passes matter that lower tilts see far from there or not at all. So the volume is wider than
the images, what was not measured is left out of the equations (it is not zero), and depth ends at the film's faces.
Atoms are not refined against the images, as isolated particles are: what lies in the rays and was never seen from
another side would pull them along.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from scipy.spatial import cKDTree
from torch import Tensor

from aet_tilt.maps import Maps, as_cube, maps_of
from aet_tilt.preprocessing import Preprocessed, for_reconstruction
from aet_tilt.reconstruction.methods import Method, MethodOrAuto, ReconstructionSettings, predict_left_out
from aet_tilt.reconstruction.operator import WindowedOperator, is_single_axis
from aet_tilt.reconstruction.problem import Problem, make_problem, r_factor, row_band, with_support
from aet_tilt.reconstruction.sieve import SieveSettings, sieve
from common.atoms.peaks import PeakSettings, bond_length, find_peaks
from common.data import ImageStack, InputError, Poses
from common.fourier import crop_or_pad
from common.iteration import Observer
from common.rotations import geodesic_distance, tilt_angles_of

_ALIKE = 30  # atoms in a neighbourhood whose sigma is the same
_FIRST_STEPS = 15  # of the sieve, until the faces of the film can be seen
_LEAN = 0.5  # degrees; matter at the border of a film's images moves by a fraction of a pixel


@dataclass(frozen=True)
class FilmSettings:
    """How a film is reconstructed.

    room : width of the volume, of that of the images, >= 1.
    atom_width : angstrom, rms, of the Gaussians that make up the volume.
    iterations : of the sieve, >= 1.
    face : the film ends where its mean density falls to this share of the highest, (0, 1).
    margin : angstrom, added at both faces.
    seen : share of the images that must show an atom, (0, 1].
    smoothing : angstrom, rms, under which maxima are looked for; the sieve is smooth already.
    closest : share of the shortest bond that atoms are apart; disorder brings some closer than a crystal has them.
    """

    room: float = 2.0
    atom_width: float = 0.32
    iterations: int = 60
    face: float = 0.2
    margin: float = 2.0
    seen: float = 0.5
    smoothing: float = 0.2
    closest: float = 0.62

    def __post_init__(self) -> None:
        if not (math.isfinite(self.room) and self.room >= 1):
            raise InputError(f"the room is {self.room}, expected at least 1 times the images")
        if self.iterations < 1:
            raise InputError(f"the film has {self.iterations} iterations, expected at least 1")
        for name in ("face", "seen", "closest"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected a share in (0, 1]")
        for name in ("atom_width", "margin", "smoothing"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"the {name.replace('_', ' ')} is {getattr(self, name)}, expected angstrom, >= 0")


@dataclass(frozen=True)
class FilmMaps:
    """maps : of the film. problem, method, settings : what they were made of and by."""

    maps: Maps
    problem: Problem
    method: Method
    settings: ReconstructionSettings


def about_one_axis(clean: Preprocessed) -> Preprocessed:
    """Poses within half a degree of tilts about y as these tilts, and a note that says so; others as they are.

    A film's wide volume is made row by row, and rows stand for themselves only where the tilts are about y: with poses
    that mix them it takes some hundred times as long.
    """
    if is_single_axis(clean.poses):
        return clean
    tilts = Poses.from_tilt_angles(tilt_angles_of(clean.poses.rotations))
    off = float(geodesic_distance(tilts.rotations, clean.poses.rotations).max())
    if off > _LEAN:
        note = f"the poses are up to {off:.2f} degrees off tilts about y: this will take hours; see --tilt-axis"
        return replace(clean, notes=(*clean.notes, note))
    note = f"the poses are up to {off:.2f} degrees off tilts about y, and taken for these, as a film is made row by row"
    return replace(clean, poses=Poses(tilts.rotations, clean.poses.shifts), notes=(*clean.notes, note))


def map_film(
    clean: Preprocessed,
    method: MethodOrAuto,
    settings: FilmSettings,
    reconstruction: ReconstructionSettings,
    observers: Sequence[Observer],
) -> FilmMaps:
    """The volume of a film by the sieve, unless another of the methods that need no isolated particle is asked for."""
    images = for_reconstruction(clean)
    if method in ("genfire", "est"):
        raise InputError(f"{method} needs an isolated particle, and this is a film; use sieve, resire or sirt")
    problem = film_problem(images, clean.poses, settings)
    chosen = replace(reconstruction, sieve=film_sieve(images.pixel_size, settings))
    if method == "auto" or method == "fbp":
        method = "sieve"
    maps = maps_of(problem, method, chosen, f"{method}, in a volume wider than the images", observers)
    return FilmMaps(maps, problem, method, chosen)


def film_sieve(pixel_size: float, settings: FilmSettings) -> SieveSettings:
    """The sieve whose Gaussians are as wide as an atom."""
    return SieveSettings(settings.iterations, settings.atom_width / pixel_size)


def film_problem(stack: ImageStack, poses: Poses, settings: FilmSettings) -> Problem:
    """The problem of a film: room beside the images, the measured rows alone, support between the faces.

    Parameters
    ----------
    stack : images (n, d, d), nothing subtracted; what was padded is marked.

    Returns
    -------
    Images (n, r, D) and support (D, r, D) with D = room x d where the tilts are about y; (n, D, D) and (D, D, D) where
    poses mix the rows.
    """
    problem = make_problem(with_room(stack, settings.room), poses)
    problem = row_band(problem, int(stack.inside.any(1).sum()))
    first = sieve(problem, replace(film_sieve(stack.pixel_size, settings), iterations=_FIRST_STEPS))
    width = int(stack.inside.any(0).sum())
    return with_support(problem, between_faces(first.values, width, stack.pixel_size, settings))


def with_room(stack: ImageStack, room: float) -> ImageStack:
    """The same images in a box ``room`` times as wide, in which nothing else was measured."""
    size = 2 * math.ceil(room * stack.box_size / 2)
    inside = crop_or_pad(stack.inside.to(stack.images.dtype), size, 2) > 0
    return replace(stack, images=crop_or_pad(stack.images, size, 2), measured=inside)


def between_faces(values: Tensor, width: int, voxel_size: float, settings: FilmSettings) -> Tensor:
    """The slab (D, r, D) of 0 and 1 that holds the film, from its mean density at each depth over the images' width."""
    d = values.shape[-1]
    middle = slice(d // 2 - width // 2, d // 2 - width // 2 + width)
    density = values[:, :, middle].clamp(min=0).mean((1, 2))
    dense = (density > settings.face * density.max()).nonzero()[:, 0]
    reach = math.ceil(settings.margin / voxel_size)
    slab = torch.zeros_like(values)
    slab[max(0, int(dense[0]) - reach) : int(dense[-1]) + reach + 1] = 1
    return slab


def seen_by(problem: Problem, share: float) -> Tensor:
    """(D, D, D) bool: voxels that at least this share of the images show."""
    rays = problem.operator.backproject(torch.ones_like(problem.images))
    return as_cube(rays) > share * len(problem.operator) * problem.operator.pixel_size


def trace_film(made: FilmMaps, elements: tuple[str, ...], tracing: PeakSettings, settings: FilmSettings) -> Atoms:
    """The atoms of a film's volume where images show it, with "position_sigma" (angstrom) from the two halves.

    Notes
    -----
    The halves' errors are independent and each has twice the variance of the whole, so that the positions' differences
    have four times it: sigma is half their rms, taken over an atom's neighbourhood. Where few images leave the halves
    with errors of their own, it is too large.
    """
    closest = tracing.minimum_distance or settings.closest * bond_length(elements)
    chosen = replace(tracing, minimum_distance=closest, smoothing=settings.smoothing)
    near = 0.4 * closest
    seen = seen_by(made.problem, settings.seen)
    atoms = find_peaks(made.maps.volume, elements, chosen, mask=seen)
    places = [np.full((len(atoms), 3), np.nan) for _ in made.maps.halves]
    for half, found in zip(made.maps.halves, places, strict=True):
        positions = find_peaks(half, elements, chosen, mask=seen).positions
        away, index = cKDTree(positions).query(atoms.positions)
        found[away < near] = positions[index[away < near]]
    squares = ((places[0] - places[1]) ** 2).mean(1)
    around = cKDTree(atoms.positions).query(atoms.positions, min(_ALIKE, len(atoms)))[1].reshape(len(atoms), -1)
    usual = float(np.nanmean(squares))
    local = np.array([usual if np.isnan(part).all() else np.nanmean(part) for part in squares[around]])
    atoms.set_array("position_sigma", np.sqrt(local) / 2)
    return atoms


def film_held_out_r1(made: FilmMaps, every: int) -> dict[str, float]:
    """R1 of one of ``every`` images, predicted by a volume made without them.

    Returns
    -------
    "held_out_r1" of all that was measured, and "held_out_r1_middle" of the `common_columns`: beside these the rays pass
    matter that few images show, which no method can predict.
    """
    left_out, predicted = predict_left_out(made.problem, made.method, replace(made.settings, held_out_every=every))
    middle = common_columns(made.problem)
    inner = r_factor(predicted[..., middle], left_out.images[..., middle])
    return {"held_out_r1": r_factor(predicted, left_out.images), "held_out_r1_middle": inner}


def common_columns(problem: Problem) -> slice:
    """The columns about the tilt axis whose matter, at the depth of the axis, lies within every image."""
    operator, d = problem.operator, problem.images.shape[-1]
    width = int((operator.window > 0).any(-2).sum()) if isinstance(operator, WindowedOperator) else d
    least = float(operator.poses.rotations[:, 0, 0].abs().min())
    half = max(1, int(least * width / 2))
    return slice(d // 2 - half, d // 2 + half)
