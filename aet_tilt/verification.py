"""The final atoms through multislice: ADF images by another program's physics against the measured ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from ase import Atoms
from torch import Tensor

from aet_tilt.found_mask import smooth_images
from common.atoms.comparison import compare
from common.atoms.spot_image import EIGHT_PI2, compared, correlations
from common.atoms.spots import SpotState
from common.atoms.verification import MultisliceCheck
from common.data import ImageStack, InputError
from common.extras import require_abtem
from common.iteration import step_generator
from common.simulation_adf import AdfOptics, adf_images

_BLURS = (0.0, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.45)  # angstrom^2, of which the images choose


@dataclass(frozen=True)
class VerificationSettings:
    """What is done with multislice images of the final atoms (abTEM; half a CPU minute and more for each image).

    images : so many, spread over the series, are compared with the measured ones; 0: none.
    whole_chain : images at all tilts are made, with counting noise, and the whole reconstruction runs on them again.
    optics : of the microscope.
    """

    images: int = 0
    whole_chain: bool = False
    optics: AdfOptics = field(default_factory=AdfOptics)

    def __post_init__(self) -> None:
        if self.images < 0:
            raise InputError(f"the verification has {self.images} images, expected 0 or more")

    @property
    def asked(self) -> bool:
        """Whether anything is to be done."""
        return self.images > 0 or self.whole_chain


def check_can_verify(elements: tuple[str, ...], settings: VerificationSettings) -> None:
    """InputError unless what is asked for is possible."""
    if not settings.asked:
        return
    require_abtem("verification")
    if not elements:
        raise InputError("verification needs the species of the atoms: say --element or --elements")


def simulate_rows(
    stack: ImageStack, state: SpotState, atoms: Atoms, rows: Tensor, settings: VerificationSettings, *, seed: int
) -> Tensor:
    """(k, d, d) multislice images of the refined atoms at the refined poses of ``rows``; no blur, no counts."""
    here = state.parameters.images(rows)
    placed = here.positions @ here.rotations.mT
    views = placed + torch.nn.functional.pad(here.shifts, (0, 1))[:, None]
    if here.focus is not None:  # the probe is focused on z = 0
        views = views - torch.nn.functional.pad(here.focus.heights[:, None], (2, 0))[:, None]
    return adf_images(
        atoms.get_chemical_symbols(),
        views,
        settings.optics,
        box_size=stack.box_size,
        pixel_size=stack.pixel_size,
        seed=seed,
    ).to(stack.images.device)


def compare_images(
    stack: ImageStack, state: SpotState, atoms: Atoms, settings: VerificationSettings, *, seed: int = 0
) -> MultisliceCheck:
    """Compare measured images, spread evenly over the series, with multislice images of the atoms.

    Notes
    -----
    The blur by source and vibration, which multislice does not know, is the one of a few that agrees best. Scale and
    offset of an image do not count in a correlation.
    """
    rows = torch.linspace(0, len(stack) - 1, min(settings.images, len(stack))).round().long().to(stack.images.device)
    sharp = simulate_rows(stack, state, atoms, rows, settings, seed=seed)
    _, model, measured, inside = compared(state.parameters, stack, rows)
    seen = inside.bool()
    variance = best_blur(sharp, measured, seen, stack.pixel_size)
    made = blurred(sharp, variance, stack.pixel_size)
    pairs = ((measured, model), (measured, made), (made, model))
    against_model, against_made, between = (_agreement(a, b, seen).cpu() for a, b in pairs)
    return MultisliceCheck(rows, against_model, against_made, between, EIGHT_PI2 * variance)


def best_blur(sharp: Tensor, measured: Tensor, inside: Tensor, pixel_size: float) -> float:
    """The variance, angstrom^2, under which simulated images (k, d, d) agree best with the measured ones."""
    found = [float(_agreement(blurred(sharp, v, pixel_size), measured, inside).mean()) for v in _BLURS]
    return _BLURS[found.index(max(found))]


def _agreement(first: Tensor, second: Tensor, inside: Tensor) -> Tensor:
    """(k,) of two stacks (k, d, d) over the pixels ``inside`` (d, d)."""
    return correlations(first[:, inside].double(), second[:, inside].double())


def blurred(images: Tensor, variance: float, pixel_size: float) -> Tensor:
    return smooth_images(images, variance**0.5 / pixel_size) if variance else images


def simulated_series(
    stack: ImageStack, state: SpotState, atoms: Atoms, settings: VerificationSettings, *, seed: int = 0
) -> ImageStack:
    """The series that the atoms would have made: multislice at all tilts, brought to the measured counts, with noise.

    Notes
    -----
    One scale for all images brings them to the refined model's; each image's background is the model's. Noise is that
    which the refinement found: Poisson of its gain, and read noise.
    """
    rows = torch.arange(len(stack), device=stack.images.device)
    sharp = simulate_rows(stack, state, atoms, rows, settings, seed=seed)
    expected, model, measured, inside = compared(state.parameters, stack, rows)
    made = blurred(sharp, best_blur(sharp, measured, inside.bool(), stack.pixel_size), stack.pixel_size)
    scale = float((made * model).sum() / made.square().sum())
    counts = _counted(scale * made + (expected - model), state, seed)
    return replace(stack, images=counts.to(stack.images))


def _counted(expected: Tensor, state: SpotState, seed: int) -> Tensor:
    gain, read = (v[:, None, None].to(expected) for v in (state.noise.gain, state.noise.read))
    generator = step_generator(seed, 0, expected.device)
    counts = gain * torch.poisson((expected / gain).clamp(min=0), generator=generator)
    noise = torch.randn(expected.shape, generator=generator, device=expected.device, dtype=expected.dtype)
    return counts + read.sqrt() * noise


def difference(again: Atoms | None, atoms: Atoms) -> dict[str, float]:
    """How the atoms that the chain found in their own multislice images differ from them."""
    if again is None or len(again) < 3:
        return {"again_atoms": 0.0 if again is None else float(len(again))}
    laid = compare(again, atoms, allow_mirror=False)
    same = again.numbers[laid.pairs[:, 0]] == atoms.numbers[laid.pairs[:, 1]]
    return {
        "again_atoms": float(len(again)),
        "again_recall": laid.recall,
        "again_rmsd_pm": laid.rmsd_pm,
        "again_same_species": float(same.mean()),
    }
