"""Atoms and poses refined together against the images, by maximum likelihood.

Gauss-Newton with each image's own parameters eliminated (Schur complement). The gradient is exact and over all images;
the curvature of the shared parameters comes from a random part of them, which is all that a step needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from ase import Atoms
from torch import Tensor

from common.atoms.information import curvature, slope_of
from common.atoms.likelihood import Measurement, Parameters, Views, measure, views_of
from common.atoms.model import AtomicModel, evaluate, first_parameters, scale_heights
from common.atoms.pose_fit import fit_views, move
from common.atoms.shared import (
    Layout,
    RefinementSettings,
    apply_step,
    layout_of,
    priors_of,
    rigid_motions,
    shared_offset,
    shared_precision,
    step_between,
)
from common.data import ImageStack, Poses
from common.iteration import Observer, State, run, step_generator
from common.noise import NoiseModel


@dataclass(frozen=True)
class RefinementState(State):
    """iteration, done; stage : 0 coarse poses, 1 poses, 2 all together.

    parameters : where the next pass evaluates. accepted : the best so far. weights : (m,) of the images.
    gradient, curvature, steps : at the accepted parameters. merit : nats, lower is better. damping : of Levenberg.
    stride : rms of the last step of the atoms in units of their sigmas.
    """

    stage: int
    joint_steps: int
    parameters: Parameters
    accepted: Parameters
    weights: Tensor
    gradient: Tensor
    curvature: Tensor
    steps: Tensor
    merit: float
    damping: float
    stride: float


def refine_atoms(
    stack: ImageStack,
    noise: NoiseModel,
    atoms: Atoms,
    poses: Poses,
    settings: RefinementSettings | None = None,
    *,
    observers: Sequence[Observer] = (),
    name: str = "refine-atoms",
) -> AtomicModel:
    """Refine atoms, poses and imaging conditions together, from a list of atoms and approximate poses.

    Parameters
    ----------
    stack : m raw images; without optics they are projections, with optics images of a phase object.
    noise : of these images, from `common.noise.estimate_noise`.
    atoms : n atoms, right to about 0.3 angstrom; their symbols give the first guess of the atoms' shape.
    poses : m poses, right to several degrees and about 0.5 angstrom.
    settings : `RefinementSettings`.
    observers : see the states go by; may resume a run of the same ``name``.

    Returns
    -------
    The model; heights start all alike and are refined one by one. `fisher` adds the sigmas.

    Raises
    ------
    InputError : no atoms, an atom that is nowhere, or another number of poses than of images.
    """
    settings = settings or RefinementSettings()
    first = first_parameters(
        stack, atoms, poses, widths=settings.widths, fractions=settings.fractions, focal_spread=settings.focal_spread
    )
    data = prepare(stack, noise, first, settings)
    first = scale_heights(first, data[0], settings.batch_size)
    weights = first.positions.new_ones(len(stack))
    return _refine(first, first, data, tuple(atoms.get_chemical_symbols()), weights, 0, settings, observers, name)


def refine_model(
    stack: ImageStack,
    noise: NoiseModel,
    model: AtomicModel,
    settings: RefinementSettings | None = None,
    *,
    observers: Sequence[Observer] = (),
    name: str = "refine-model",
) -> AtomicModel:
    """Go on refining a model whose poses, weights or atoms have been changed; parameters as in `refine_atoms`."""
    settings = settings or RefinementSettings()
    data = prepare(stack, noise, model.parameters, settings)
    expected = first_parameters(
        stack,
        model.to_ase(),
        model.poses,
        widths=settings.widths,
        fractions=settings.fractions,
        focal_spread=settings.focal_spread,
    )
    return _refine(model.parameters, expected, data, model.symbols, model.weights, 1, settings, observers, name)


def refit_poses(
    stack: ImageStack,
    noise: NoiseModel,
    model: AtomicModel,
    found: AtomicModel,
    settings: RefinementSettings | None = None,
) -> AtomicModel:
    """The atoms of ``model`` with the poses of ``found`` (of the stack's m images), fitted once more to these atoms."""
    settings = settings or RefinementSettings()
    parameters = with_views(model.parameters, views_of(found.parameters))
    data = prepare(stack, noise, parameters, settings)
    few = replace(settings, pose_steps=3)
    state = _fit_poses(start(parameters, few, weights=found.weights, stage=1), data[1], few)
    return evaluate(model.symbols, state.accepted, data[1], found.weights, settings.batch_size)


def _refine(
    first: Parameters,
    expected: Parameters,
    data: Sequence[Measurement],
    symbols: tuple[str, ...],
    weights: Tensor,
    stage: int,
    settings: RefinementSettings,
    observers: Sequence[Observer],
    name: str,
) -> AtomicModel:
    begin = start(first, settings, weights=weights, stage=stage)
    state = run(name, begin, lambda state: step(state, data, expected, settings), observers)
    return evaluate(symbols, state.accepted, data[1], state.weights, settings.batch_size)


def crop_side(positions: Tensor, shift_slack: float, stack: ImageStack, margin: float) -> int:
    """Side in pixels, a multiple of 8, of the square that holds the particle, its tails and some play."""
    radius = float(torch.linalg.vector_norm(positions - positions.mean(0), dim=1).max())
    side = 8 * math.ceil(2 * (radius + margin + shift_slack) / stack.pixel_size / 8)
    return min(side, stack.box_size)


def prepare(
    stack: ImageStack, noise: NoiseModel, parameters: Parameters, settings: RefinementSettings
) -> list[Measurement]:
    """The images in the coarse and in the full band, cut around where the poses put the particle."""
    centre = parameters.positions.mean(0)
    centres = parameters.shifts + (parameters.rotations @ centre)[:, :2]
    side = crop_side(parameters.positions, 0.5, stack, settings.margin)
    limits = [1 / settings.coarse_resolution, 1 / settings.resolution]
    return measure(stack, noise, centres, side=side, limits=limits)


def start(parameters: Parameters, settings: RefinementSettings, *, weights: Tensor, stage: int = 0) -> RefinementState:
    layout = layout_of(parameters, settings.refine_b_factors)
    empty = parameters.positions.new_zeros(layout.size)
    return RefinementState(
        iteration=0,
        done=False,
        stage=stage,
        joint_steps=0,
        parameters=parameters,
        accepted=parameters,
        weights=weights,
        gradient=empty,
        curvature=parameters.positions.new_zeros(layout.size, layout.size),
        steps=parameters.positions.new_zeros(len(weights), 7),
        merit=math.inf,
        damping=1e-3,
        stride=math.inf,
    )


def step(
    state: RefinementState, data: Sequence[Measurement], expected: Parameters, settings: RefinementSettings
) -> RefinementState:
    """One fit of all poses (stages 0 and 1), or one joint Gauss-Newton step (stage 2).

    ``data`` : in the coarse and in the full band. ``expected`` : where the priors put the shape and the focal spread.
    """
    if state.stage < 2:
        return _fit_poses(state, data[state.stage], settings)
    return _joint_step(state, data[1], expected, settings)


def _fit_poses(state: RefinementState, data: Measurement, settings: RefinementSettings) -> RefinementState:
    rows = torch.arange(len(data), device=data.level.device)
    iterations = settings.pose_steps if state.stage == 0 else 2
    views, _ = fit_views(
        state.parameters,
        views_of(state.parameters),
        data,
        rows,
        priors=priors_of(settings),
        iterations=iterations,
        batch_size=settings.batch_size,
    )
    moved = with_views(state.parameters, views)
    return replace(state, iteration=state.iteration + 1, stage=state.stage + 1, parameters=moved, accepted=moved)


def with_views(parameters: Parameters, views: Views) -> Parameters:
    return replace(parameters, rotations=views.rotations, shifts=views.shifts, gains=views.gains, defocus=views.defocus)


def _joint_step(
    state: RefinementState, data: Measurement, expected: Parameters, settings: RefinementSettings
) -> RefinementState:
    here = state.parameters
    layout = layout_of(here, settings.refine_b_factors)
    priors = priors_of(settings)
    precision = shared_precision(here, settings, layout, data)
    offset = shared_offset(here, expected, layout)
    slope = slope_of(here, data, priors=priors, layout=layout, damping=1e-5, batch_size=settings.batch_size)
    merit = float((state.weights * slope.profile).sum() + (precision * offset**2).sum() / 2)
    joint_steps = state.joint_steps + 1
    if merit <= state.merit + 0.1:
        gradient = (state.weights[:, None] * slope.gradients).sum(0) + precision * offset
        bent = with_secant(state.curvature, step_between(here, state.accepted, layout), gradient - state.gradient)
        # again once the first steps are done, unless they were so short that the secants know it all
        if state.joint_steps == 0 or (state.joint_steps == 3 and state.stride > 1):
            bent = sampled_curvature(here, data, state.weights, settings, iteration=state.iteration) + torch.diag(
                precision
            )
        state = replace(
            state,
            accepted=here,
            merit=merit,
            gradient=gradient,
            curvature=bent,
            steps=slope.steps,
            damping=state.damping * 0.1,
        )
    else:
        state = replace(state, damping=max(state.damping * 30, 1e-2))
    moved = shared_step(state, layout, state.damping)
    views = move(views_of(state.accepted), state.steps)
    atoms = moved[: 3 * layout.atoms]
    # in units of the atoms' own sigmas
    stride = math.sqrt(float(atoms @ state.curvature[: 3 * layout.atoms, : 3 * layout.atoms] @ atoms) / len(atoms))
    small = stride < settings.tolerance and state.damping < 1.0
    done = small or joint_steps >= settings.max_steps or state.damping > 1e4
    return replace(
        state,
        iteration=state.iteration + 1,
        joint_steps=joint_steps,
        parameters=state.accepted if done else with_views(apply_step(state.accepted, moved, layout), views),
        stride=stride,
        done=done,
    )


def with_secant(matrix: Tensor, moved: Tensor, turned: Tensor) -> Tensor:
    """BFGS update: the curvature (p, p) that turns the gradient by ``turned`` over the step ``moved``, both (p,)."""
    bent = matrix @ moved
    across, along = float(moved @ turned), float(moved @ bent)
    if not (along > 0 and across > 0.05 * along):
        return matrix  # the last step says nothing certain
    return matrix + torch.outer(turned, turned) / across - torch.outer(bent, bent) / along


def shared_step(state: RefinementState, layout: Layout, damping: float) -> Tensor:
    """Levenberg-Marquardt step (p,) of the shared parameters, limited in the shape and the optics."""
    diagonal = torch.diagonal(state.curvature)
    matrix = state.curvature + torch.diag(diagonal * max(damping, 1e-7) + 1e-12)
    n, c = layout.atoms, layout.components
    gradient = state.gradient.clone()
    rigid = rigid_motions(state.accepted.positions)
    gradient[: 3 * n] -= rigid @ (rigid.T @ gradient[: 3 * n])
    # stiff against rigid motions, which the poses would have to follow
    matrix[: 3 * n, : 3 * n] += diagonal[: 3 * n].mean() * rigid @ rigid.T
    step = -torch.linalg.solve(matrix, gradient)
    # the shape and the optics are nearly degenerate far from the optimum: hold them in reach, then solve for the atoms
    atoms, limit = layout.per_atom * n, step.new_tensor([0.3] * (2 * c) + [20.0, 0.1])
    shared = torch.maximum(torch.minimum(step[atoms:], limit), -limit)
    if bool((shared != step[atoms:]).any()):
        known = gradient[:atoms] + matrix[:atoms, atoms:] @ shared
        step = torch.cat((-torch.linalg.solve(matrix[:atoms, :atoms], known), shared))
    limit = torch.full_like(step, 0.15)
    limit[3 * n : 4 * n] = 0.5 * state.accepted.heights.abs().mean()
    limit[4 * n : atoms] = 3.0
    limit[atoms:] = math.inf
    return torch.maximum(torch.minimum(step, limit), -limit)


def sampled_curvature(
    parameters: Parameters, data: Measurement, weights: Tensor, settings: RefinementSettings, *, iteration: int
) -> Tensor:
    """Curvature (p, p) from a random part of the images, scaled to all of them."""
    m = len(data)
    generator = step_generator(settings.seed, iteration)
    rows = torch.randperm(m, generator=generator)[: settings.curvature_images].sort().values.to(weights.device)
    layout = layout_of(parameters, settings.refine_b_factors)
    share = float(weights.sum() / weights[rows].sum().clamp(min=1e-12))
    return share * curvature(parameters, data, rows, weights, priors=priors_of(settings), layout=layout)
