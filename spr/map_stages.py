"""The road's first half: what the images say of themselves, the search for a map, its poses refined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from common.data import ImageStack, InputError, Poses
from common.iteration import Observer, step_generator
from common.noise import contrast_sign, extent_and_noise, whiten
from common.rotations import point_group
from spr.ab_initio import patient, prepare, scheduled, slowness
from spr.consensus import Consensus, agree
from spr.refinement import RefinedMap, halve, refine, shells_to
from spr.ring_images import RingImages
from spr.ring_sampling import SearchGrid, sample_rings
from spr.seen import Seen
from spr.settings import Settings

LEAST_IMAGES = 20
_WEAK = 0.8  # slowness of images (220 nats each) from which starts that disagree are followed by patient ones


def look_at(stack: ImageStack, settings: Settings, *, hold_out: bool = True) -> Seen:
    """Learn noise, particle size and contrast from the images, whiten them, and set some aside."""
    if len(stack) < LEAST_IMAGES:
        raise InputError(f"{len(stack)} images, expected at least {LEAST_IMAGES} to find a structure from")
    warnings: list[str] = []
    extent, noise = extent_and_noise(stack)
    room = stack.box_size * stack.pixel_size / 2
    if extent.radius + extent.shift_spread > 0.9 * room:
        raise InputError(
            f"the particle has a radius of about {extent.radius:.1f} A and the box a half width of {room:.1f} A, "
            "expected free border around it: cut larger boxes"
        )
    contrast = contrast_sign(stack, noise, extent)
    if stack.optics is None and contrast.sign < 0 and contrast.significance > 3:
        warnings.append("atoms are dark in these images: the contrast was inverted")
        stack = replace(stack, images=-stack.images.float())
        noise = replace(noise, mean=-noise.mean)
    order = torch.randperm(len(stack), generator=step_generator(settings.seed, 1)).to(stack.images.device)
    count = max(1, round(settings.held_out_fraction * len(stack))) if hold_out else 0
    fitted, left_out = order[count:].sort().values, order[:count].sort().values
    return Seen(stack, whiten(stack, noise), noise, extent, fitted, left_out, tuple(warnings))


def find_band(
    seen: Seen, settings: Settings, *, wide: bool = False, centres: Tensor | None = None
) -> tuple[RingImages, SearchGrid]:
    """Centre the images and sample them on rings where they hold most signal, or nearly all of it (``wide``).

    centres : of all images, where they are known; see `spr.ab_initio.prepare`.
    """
    stack, white, noise = seen.part(seen.fitted)
    return prepare(
        with_focal_spread(stack, settings.focal_spread),
        white,
        noise,
        radius=seen.extent.radius,
        shift_spread=seen.extent.shift_spread,
        settings=settings.search,
        wide=wide,
        centres=None if centres is None else centres[seen.fitted],
    )


def with_focal_spread(stack: ImageStack, focal_spread: float) -> ImageStack:
    """The stack with a focal spread where the file gave none."""
    if stack.optics is None:
        return stack
    given = stack.optics.focal_spread
    optics = replace(stack.optics, focal_spread=torch.where(given > 0, given, focal_spread))
    return replace(stack, optics=optics)


def find_map(seen: Seen, settings: Settings, observers: Sequence[Observer]) -> tuple[RingImages, SearchGrid, Consensus]:
    """Search from random starts until enough of them agree.

    The first starts look at the strongest rings and cool quickly, which is enough for strong images of small clusters.
    Where they disagree, the others take their time: on weak images they cool slowly; of larger particles, whose images
    are strong, many wrong maps explain the strongest rings well, so that they look at nearly all of the signal.
    """
    rings, grid = find_band(seen, settings)
    schedule = scheduled(settings.search, rings)
    most, narrow = settings.starts.most, min(settings.starts.narrow, settings.starts.most)
    weak = narrow > 0 and slowness(rings) > _WEAK
    if weak or (settings.search.coarsest and settings.search.finest):
        narrow = most
    tracing, symmetry = settings.tracing_of_element(), symmetry_of(settings)
    agree_on = partial(agree, tracing=tracing, seed=settings.seed, symmetry=symmetry, observers=observers)
    if narrow:
        patiently = patient(schedule) if weak and not settings.search.iterations else None
        few = replace(settings.starts, most=max(narrow, settings.starts.agreeing))
        starts = agree_on(rings, grid, schedule, settings=few, patient=patiently)
        if starts.reached or narrow == most:
            return rings, grid, starts
    rings, grid = find_band(seen, settings, wide=True)
    few = replace(settings.starts, most=max(most - narrow, settings.starts.agreeing))
    before = len(starts.starts) if narrow else 0
    return rings, grid, agree_on(rings, grid, scheduled(settings.search, rings, wide=True), settings=few, before=before)


def symmetry_of(settings: Settings) -> Tensor | None:
    return None if settings.symmetry == "C1" else point_group(settings.symmetry)


def refine_poses(
    seen: Seen,
    rings: RingImages,
    grid: SearchGrid,
    starts: Consensus,
    settings: Settings,
    observers: Sequence[Observer],
) -> RefinedMap:
    """Poses off the grid, map to higher resolution, in independent halves."""
    best = starts.starts[starts.best]
    return refine_from(best.state.values, best.poses, seen, rings, grid, settings, observers)


def refine_from(
    values: Tensor,
    poses: Poses,
    seen: Seen,
    rings: RingImages,
    grid: SearchGrid,
    settings: Settings,
    observers: Sequence[Observer],
    *,
    halves: Tensor | None = None,
) -> RefinedMap:
    """`refine_poses` from any map (d, d, d) on the search's grid and poses of the fitted images.

    halves : (n,) 0 or 1, of these images; None: at random.
    """
    stack, white, noise = seen.part(seen.fitted)
    stack = with_focal_spread(stack, settings.focal_spread)
    shells = shells_to(settings.refinement.finest, grid)
    finer = sample_rings(
        stack, white, noise, replace(grid, shells=shells), rings.centres, centre_sigma=rings.centre_sigma
    )
    data = halve(finer, shells, grid, seed=settings.seed)
    data = data if halves is None else replace(data, half=halves)
    return refine(values, poses, data, settings.refinement, symmetry=symmetry_of(settings), observers=observers)
