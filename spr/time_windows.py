"""How the atoms of one particle move: the whole movie's model refined again in windows of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

from common.atoms.atom_count import AtomCountSettings, height_variance, missing_atoms, threshold
from common.atoms.comparison import rigid_fit
from common.atoms.fisher import fisher
from common.atoms.model import AtomicModel
from common.atoms.refinement import RefinementSettings, prepare, refine_model, sampled_curvature
from common.atoms.shared import layout_of, shared_precision
from common.data import ImageStack, Poses, Volume
from common.iteration import Observer, run_stage
from common.noise import NoiseModel
from common.resolution import FSC, fourier_shell_correlation
from spr.final_maps import map_transfer, weighted_map
from spr.model_parts import select_images
from spr.seen import Seen

_COUNTED = AtomCountSettings(nats_per_parameter=1.0)  # a place is looked for among thousands
_STEPS = 4  # of the refinement in a window, which starts beside its end
_LEAST = 40  # images of a window
_SAMPLED = 50  # of these, whose information stands for all: sigmas within 3 %
_ALARM = 0.01  # chance that any atom of any window is called moved where none has


@dataclass(frozen=True)
class Window:
    """Atoms of one window of time.

    first, last : frames, from 0. positions : (n, 3) angstrom, laid on the whole movie's. sigma : (n,) per axis.
    moved : (n, 3) angstrom from the whole movie's atoms. chance : (n,) of a move so far by noise alone.
    significant : (n,) booleans, that chance being small among all atoms and windows.
    lost : (n,) nats that speak for an atom having left, 0 for atoms that are still as high as a third of the others.
    gone : (n,) booleans, that these are more than chance brings.
    new : (k, 3) angstrom, where the window asks for an atom that the whole movie does not have. gained : (k,) nats.
    """

    first: int
    last: int
    positions: Tensor
    sigma: Tensor
    moved: Tensor
    chance: Tensor
    significant: Tensor
    lost: Tensor
    gone: Tensor
    new: Tensor
    gained: Tensor


def windows_of(frames: Tensor, length: int) -> list[tuple[int, int]]:
    """First and last frame of windows of ``length`` frames that overlap by half; the last ends with the movie."""
    begin, end = int(frames[0]), int(frames[-1])
    if length <= 0 or end - begin + 1 <= length:
        return []
    starts = [*range(begin, end - length + 1, max(1, length // 2)), end - length + 1]
    return [(first, first + length - 1) for first in dict.fromkeys(starts)]


def follow_atoms(
    seen: Seen,
    model: AtomicModel,
    frames: Tensor,
    length: int,
    settings: RefinementSettings,
    observers: Sequence[Observer] = (),
) -> tuple[Window, ...]:
    """Refine the model of a whole movie in sliding windows.

    Parameters
    ----------
    model : of the images ``seen.fitted``, with sigmas. frames : (m,) frame numbers of these images, rising.
    length : of a window, frames; the windows overlap by half.

    Returns
    -------
    The windows in the order of time; none where the movie is no longer than one.
    """
    if model.position_sigma is None:
        raise ValueError("the model has no sigmas, expected those of fisher()")
    found: list[Window] = []
    spans = [(a, b) for a, b in windows_of(frames, length) if int(_within(frames, a, b).sum()) >= _LEAST]
    few = replace(settings, max_steps=min(settings.max_steps, _STEPS))
    for first, last in spans:
        rows = _within(frames, first, last).nonzero()[:, 0]
        stack, _, noise = seen.part(seen.fitted[rows])
        name = f"windows/frame-{first + 1}"
        own = refine_model(stack, noise, select_images(model, rows), few, observers=observers, name=name)
        own = run_stage(f"{name}-sigmas", partial(fisher, stack, noise, own, settings, n_images=_SAMPLED), observers)
        changes = run_stage(f"{name}-changes", partial(_changes, stack, noise, own, model, settings), observers)
        found.append(_compared(own, model, changes, first, last, len(spans)))
    return tuple(found)


@dataclass(frozen=True)
class Changes:
    """Atoms that left and came: ``lost`` (n,) nats, ``new`` (k, 3) angstrom, ``gained`` (k,) nats; see `Window`."""

    lost: Tensor
    new: Tensor
    gained: Tensor


def _changes(
    stack: ImageStack, noise: NoiseModel, own: AtomicModel, whole: AtomicModel, settings: RefinementSettings
) -> Changes:
    """By likelihood: the height that an atom has lost over its error (Wald), and the score of atoms not there."""
    data = prepare(stack, noise, own.parameters, settings)[1]
    layout = layout_of(own.parameters, settings.refine_b_factors)
    curved = sampled_curvature(own.parameters, data, own.weights, settings, iteration=0)
    curved = curved + torch.diag(shared_precision(own.parameters, settings, layout, data))
    variance = height_variance(own, curved)
    fallen = (whole.heights - own.heights).clamp(min=0)
    low = own.heights < _COUNTED.smallest_height * own.heights.median()
    lost = torch.where(low, fallen.square() / (2 * variance), 0.0)
    new, gained = missing_atoms(own, data, curved, _COUNTED, settings)
    return Changes(lost, new, gained)


def _within(frames: Tensor, first: int, last: int) -> Tensor:
    return (frames >= first) & (frames <= last)


def _compared(own: AtomicModel, whole: AtomicModel, changes: Changes, first: int, last: int, n_windows: int) -> Window:
    """A window's atoms laid on those of the whole movie.

    The whole movie holds the window, so that their difference has the variance of the window less that of the whole.
    """
    if own.position_sigma is None or whole.position_sigma is None:
        raise ValueError("a model has no sigmas, expected those of fisher()")
    p, q = own.positions.cpu().numpy(), whole.positions.cpu().numpy()
    rotation, shift = rigid_fit(p, q, 1.0)
    positions = torch.from_numpy(p @ rotation.T + shift)
    moved = positions - whole.positions.cpu()
    sigma = own.position_sigma.cpu()
    variance = (sigma.square() - whole.position_sigma.cpu().square()).clamp(min=0.25 * sigma.square())
    chance = torch.from_numpy(np.asarray(chi2.sf((moved.square().sum(1) / variance).numpy(), 3)))
    significant = chance < _ALARM / (len(chance) * n_windows)
    new = changes.new.cpu() @ torch.from_numpy(rotation).T + torch.from_numpy(shift)
    lost = changes.lost.cpu()
    gone = lost > threshold(own, _COUNTED)
    return Window(first, last, positions, sigma, moved, chance, significant, lost, gone, new, changes.gained.cpu())


@dataclass(frozen=True)
class WindowFSC:
    """Fourier shell correlation of the maps of two windows, by their numbers from 0, that share no frame."""

    first: int
    second: int
    fsc: FSC


def compare_maps(
    seen: Seen, model: AtomicModel, frames: Tensor, windows: Sequence[Window], mask: Volume
) -> tuple[WindowFSC, ...]:
    """The maps of windows against each other: where they differ, the particle has changed or its poses are poor.

    Parameters
    ----------
    model : of the whole movie; its poses make the maps. frames : as for `follow_atoms`. mask : of the whole map.
    """
    _, white, _ = seen.part(seen.fitted)
    transfer = map_transfer(seen, seen.fitted, model)
    poses = Poses(model.poses.rotations.float(), model.poses.shifts.float())
    maps = []
    for window in windows:
        rows = _within(frames, window.first, window.last).nonzero()[:, 0]
        maps.append(weighted_map(white[rows], poses[rows], transfer[rows], model.weights[rows].float()))
    return tuple(
        WindowFSC(i, j, fourier_shell_correlation(maps[i], maps[j], mask.values.to(maps[i].values)))
        for j in range(len(windows))
        for i in range(j)
        if windows[i].last < windows[j].first
    )
