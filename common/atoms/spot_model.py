"""The refined model of a tilt series with the sigma of every atom, and how well it predicts images it has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from common.atoms.shared import rigid_motions
from common.atoms.spot_image import compared, correlations, image_batches
from common.atoms.spot_normal import Linearised, Shared, image_slope, noise_slope
from common.atoms.spot_settings import SpotSettings
from common.atoms.spot_solver import AtomInformation, atom_information, solve
from common.atoms.spots import SpotState, groups_of, linearised, refine_spots
from common.data import ImageStack, Poses
from common.iteration import step_generator
from common.parallel import map_over

_PROBED = 1500  # draws of atoms from which the share of the variance that comes from overlaps is measured


@dataclass(frozen=True)
class SpotModel:
    """Atoms refined against a tilt series.

    atoms : with arrays "peak_height" (relative to the median), "b_factor" (angstrom^2), "position_sigma" (angstrom, one
        direction), "height_sigma" (relative to the median), "position_bound" (Cramer-Rao, angstrom).
    state : all parameters, as refined.
    bound_pm : rms of the Cramer-Rao bound on positions, three dimensions, pm. sigma_pm : the same of the sigmas.
    """

    atoms: Atoms
    state: SpotState
    bound_pm: float
    sigma_pm: float

    @property
    def poses(self) -> Poses:
        return self.state.parameters.poses


def spot_model(
    stack: ImageStack, state: SpotState, atoms: Atoms, settings: SpotSettings | None = None, *, seed: int = 0
) -> SpotModel:
    """Atoms with sigmas from a refined state.

    Parameters
    ----------
    stack, atoms, settings : as they were refined.
    seed : of the probes.

    Notes
    -----
    The variance of an atom alone, from its own 4 x 4 information, is multiplied by what overlaps, poses and misfit add
    on average over the atoms. That factor comes from probes: the sandwich ``H^-1 (sum g g') H^-1`` [1]_, with the
    measured gradient g of each image, is the covariance of ``H^-1 sum s_i g_i`` over random signs s_i; drawing noise
    from the model instead gives the Cramer-Rao bound. Rigid motions, which images cannot see, are taken out.

    References
    ----------
    .. [1] H. White, "Maximum likelihood estimation of misspecified models", Econometrica 50, 1 (1982).
    """
    settings = settings or SpotSettings()
    system = linearised(state, stack, groups_of(atoms, settings), settings)
    alone = atom_information(system)
    diagonal = torch.diagonal(alone.blocks, dim1=1, dim2=2)
    ridge = 1e-9 * (diagonal + diagonal.median(0).values)  # an atom that no image sees has no information
    inverse = torch.linalg.inv(alone.blocks + torch.diag_embed(ridge))
    places, height = torch.diagonal(inverse, dim1=1, dim2=2)[:, 1:], inverse[:, 0, 0]
    count = min(8, max(2, math.ceil(_PROBED / len(atoms))))
    generator = step_generator(seed, 0, stack.images.device)
    measured = [_sampled(system, alone, _signed(system, stack, generator), settings) for _ in range(count)]
    bound = [_sampled(system, alone, noise_slope(system, generator), settings) for _ in range(max(1, count // 2))]
    m = len(stack)
    small_sample = m / max(m - 4, 1)
    here = state.parameters
    median = float(here.heights.median())
    wider, least = (_ratio(draws, here.positions, places) for draws in (measured, bound))
    of_heights = small_sample * _mean_square([draw.atoms[:, :1] for draw in measured], height[:, None])
    wider = max(small_sample * wider, least)
    sigma, limit = ((places.mean(1) * factor).sqrt().cpu().numpy() for factor in (wider, least))
    found = refined_atoms(state, atoms)
    found.set_array("position_sigma", sigma)
    found.set_array("position_bound", limit)
    found.set_array("height_sigma", ((height * max(of_heights, 1.0)).sqrt() / median).cpu().numpy())

    def pm(sigmas: np.ndarray) -> float:
        return 100 * math.sqrt(3 * float(np.mean(sigmas**2)))

    return SpotModel(found, state, pm(limit), pm(sigma))


def refined_atoms(state: SpotState, atoms: Atoms) -> Atoms:
    """The atoms of a state, without sigmas; symbols as in ``atoms``."""
    here = state.parameters
    found = Atoms(atoms.get_chemical_symbols(), positions=here.positions.cpu().numpy())
    found.set_array("peak_height", (here.heights / here.heights.median()).cpu().numpy())
    found.set_array("b_factor", here.b_factors.cpu().numpy())
    return found


def _signed(system: Linearised, stack: ImageStack, generator: torch.Generator) -> Shared:
    """The gradients of the images summed with random signs."""
    signs = torch.randint(0, 2, (len(stack),), generator=generator, device=generator.device) * 2.0 - 1.0
    return image_slope(system, signs.double())


def _sampled(system: Linearised, alone: AtomInformation, right: Shared, settings: SpotSettings) -> Shared:
    return solve(system, alone, right, damping=1e-6, tolerance=0.05, most=2 * settings.products)[0]


def _ratio(draws: list[Shared], positions: Tensor, alone: Tensor) -> float:
    """Mean square of the draws' moves, rigid motions taken out, over the variances of the atoms alone."""
    rigid = rigid_motions(positions)
    moves = []
    for draw in draws:
        flat = draw.atoms[:, 1:].flatten()
        moves.append((flat - rigid @ (rigid.T @ flat)).reshape(-1, 3))
    freedom = max(1.0 - 6 / (3 * len(positions)), 0.1)
    return _mean_square(moves, alone) / freedom


def _mean_square(draws: list[Tensor], alone: Tensor) -> float:
    return float(torch.stack([(draw**2 / alone).mean() for draw in draws]).mean())


@dataclass(frozen=True)
class Prediction:
    """How images left out agree with a model refined without them.

    r1 : sum |measured - predicted| / sum |measured|, background subtracted from both. correlation : mean of the
    images. r1s, correlations : (m,) of each image. state : with poses, scales and backgrounds fitted to these images.
    """

    r1: float
    correlation: float
    r1s: Tensor
    correlations: Tensor
    state: SpotState


def predict_images(stack: ImageStack, poses: Poses, atoms: Atoms, settings: SpotSettings | None = None) -> Prediction:
    """Predict images that were left out: only their own pose, scale and background are fitted, the atoms are kept.

    Parameters
    ----------
    stack, poses : the images left out and what is known of their poses.
    atoms : refined without them (`refined_atoms`).
    settings : as they were refined.
    """
    settings = settings or SpotSettings()
    state = fit_images(stack, poses, atoms, settings)

    def of_images(rows: Tensor) -> tuple[Tensor, ...]:
        expected, signal, images, inside = compared(state.parameters, stack, rows)
        seen = inside.bool().expand_as(images)
        measured, signal = ((part[seen].view(len(rows), -1)) for part in (images - (expected - signal), signal))
        return (measured - signal).abs().sum(1), measured.abs().sum(1), correlations(measured, signal)

    batches = image_batches(len(stack), settings.batch_size, stack.images.device)
    difference, total, each = map_over(of_images, batches)
    return Prediction(float(difference.sum() / total.sum()), float(each.mean()), difference / total, each, state)


def fit_images(stack: ImageStack, poses: Poses, atoms: Atoms, settings: SpotSettings) -> SpotState:
    """Poses, scales, blurs and backgrounds of further images, the atoms kept."""
    return refine_spots(stack, poses, atoms, replace(settings, learn_spread=False, max_steps=6, products=0))
