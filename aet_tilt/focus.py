"""What the foci of a through-focal series mean: where they lie in the specimen, and how fast the probe opens.

A microscope states its focus from a zero and with a sign of its own. Atoms, found in a volume that knows nothing of
focus, tell both, and the opening, by how well they explain the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from ase import Atoms
from scipy.optimize import minimize

from common.atoms.spot_settings import SpotSettings
from common.atoms.spot_start import first_parameters, scaled
from common.data import Focus, ImageStack, InputError, Poses

_IMAGES = 36  # that are looked at
_OPENINGS = (0.005, 0.012)
_WIDTHS = (0.4, 0.7, 1.0)  # B factors tried, of that without a focus
_FINE = tuple(1.05**k for k in range(-12, 7))  # the same, for the error without
_PLACES = 5  # of the zero
_TURNS = 120
_LEAST_GAIN = 20.0  # of chi squared, for two numbers


@dataclass(frozen=True)
class FocusSettings:
    """How the foci of a through-focal series are understood.

    opening : rms width of the probe per angstrom off its focus, of a converged beam about 0.4 times its half angle
        (radian); 0: from the images.
    """

    opening: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.opening) and 0 <= self.opening < 1):
            raise InputError(f"the opening is {self.opening}, expected a number of 0 to 1, such as 0.01")


@dataclass(frozen=True)
class FoundFocus:
    """focus : in the specimen's frame; None where the images show none. note : in words."""

    focus: Focus | None
    note: str


def find_focus(
    stack: ImageStack, poses: Poses, atoms: Atoms, settings: FocusSettings, fit: SpotSettings | None = None
) -> FoundFocus:
    """Where each image is sharp, and how fast the probe opens.

    Parameters
    ----------
    stack : images with the foci as the microscope states them. poses, atoms : about right.

    Notes
    -----
    Sign, zero, opening and the atoms' width with the least squared error: a coarse search, then a simplex.
    """
    fit = fit or SpotSettings()
    assert stack.focus is not None
    count = min(_IMAGES, len(stack))
    # drawn, for foci come in turn
    drawn = torch.randperm(len(stack), generator=torch.Generator().manual_seed(0))[:count]
    rows = drawn.sort().values.to(stack.images.device)
    part = stack[rows]
    first = first_parameters(replace(part, focus=None), poses[rows], atoms, fit)
    stated = stack.focus.heights[rows].double()

    def error(sign: float, numbers: np.ndarray) -> float:
        width, opening, zero = numbers
        guess = replace(
            first,
            b_factors=first.b_factors * math.exp(width),
            focus=Focus(sign * stated + zero, settings.opening or math.exp(opening)),
        )
        return scaled(guess, part, fit.batch_size)[1]

    reach = float(stated.max() - stated.min()) / 2
    middle = float(stated.max() + stated.min()) / 2
    without = min(scaled(replace(first, b_factors=first.b_factors * width), part, fit.batch_size)[1] for width in _FINE)
    sign, numbers, least = _best(error, middle, reach)
    pixels = count * int(stack.inside.sum())
    gain = pixels * math.log(without / least)
    if gain < _LEAST_GAIN:
        return FoundFocus(None, "the foci do not show in the images: they are taken as sharp at all depths")
    opening, zero = settings.opening or math.exp(float(numbers[1])), float(numbers[2])
    heights = sign * stack.focus.heights + zero
    note = (
        f"focus: the probe opens by {1000 * opening:.1f} pm an angstrom (rms), the foci count "
        f"{'along' if sign > 0 else 'against'} the beam, and the specimen's origin lies at {-sign * zero:.1f} angstrom"
    )
    return FoundFocus(Focus(heights, opening), note)


def _best(error: Callable[[float, np.ndarray], float], middle: float, reach: float) -> tuple[float, np.ndarray, float]:
    """Sign, numbers (log relative width, log opening, zero) and the error there."""
    tried: list[tuple[float, float, np.ndarray]] = []
    for sign, place, opening, width in product((1.0, -1.0), np.linspace(-reach, reach, _PLACES), _OPENINGS, _WIDTHS):
        numbers = np.array([math.log(width), math.log(opening), place - sign * middle])
        tried.append((error(sign, numbers), sign, numbers))
    ends = []
    for wanted in (1.0, -1.0):
        _, sign, begin = min((each for each in tried if each[1] == wanted), key=lambda each: each[0])
        simplex = begin + np.vstack((np.zeros(3), np.diag([0.3, 0.4, 0.3 * reach + 1])))
        found = minimize(
            lambda x, sign=sign: error(sign, x),
            begin,
            method="Nelder-Mead",
            options={"initial_simplex": simplex, "maxfev": _TURNS, "xatol": 1e-3, "fatol": 0.0},
        )
        ends.append((sign, found.x, float(found.fun)))
    return min(ends, key=lambda end: end[2])
