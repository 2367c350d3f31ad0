"""The first parameters of atoms and images: brightness, background and width, from a list of atoms."""

from __future__ import annotations

from dataclasses import replace

import torch
from ase import Atoms
from torch import Tensor

from common.atoms.spot_image import SpotParameters, basis_for, image_batches, lay_out, signal_of
from common.atoms.spot_settings import SpotSettings
from common.data import ImageStack, InputError, Poses
from common.least_squares import least_squares
from common.parallel import map_over


def first_parameters(stack: ImageStack, poses: Poses, atoms: Atoms, settings: SpotSettings) -> SpotParameters:
    """Parameters from a list of atoms; scales and backgrounds by least squares on each image."""
    device, m = stack.images.device, len(stack)
    k = (settings.background_order + 1) * (settings.background_order + 2) // 2
    positions = torch.as_tensor(atoms.positions, dtype=torch.float64, device=device)
    heights = torch.ones(len(atoms), dtype=torch.float64, device=device)
    if atoms.has("peak_height"):
        heights = torch.as_tensor(atoms.arrays["peak_height"], dtype=torch.float64, device=device).clamp(min=0.05)
    given = atoms.arrays.get("b_factor")
    known = given is not None and bool((given > 0).all())
    bare = SpotParameters(
        positions=positions,
        heights=heights,
        b_factors=torch.as_tensor(given, dtype=torch.float64, device=device) if known else 0 * heights,
        rotations=poses.rotations.double(),
        shifts=poses.shifts.double(),
        scales=heights.new_ones(m),
        blurs=heights.new_zeros(m),
        backgrounds=heights.new_zeros(m, k),
        focus=None if stack.focus is None else replace(stack.focus, heights=stack.focus.heights.double()),
    )
    widths = [settings.b_factor] if settings.b_factor else [2.5, 5.0, 8.0, 12.0, 18.0, 27.0, 40.0]
    guesses = [bare] if known else [replace(bare, b_factors=torch.full_like(heights, b)) for b in widths]
    fits = [scaled(guess, stack, settings.batch_size) for guess in guesses]
    best = min(range(len(fits)), key=lambda i: fits[i][1])
    fitted = fits[best][0]
    level = fitted[:, 0].median()
    if float(level) <= 0:
        raise InputError("the atoms are not brighter than the background; are angles and tilt axis right?")
    return replace(
        guesses[best],
        heights=heights * level,
        scales=(fitted[:, 0] / level).clamp(0.3, 3.0),
        backgrounds=fitted[:, 1:],
    )


def scaled(bare: SpotParameters, stack: ImageStack, batch_size: int) -> tuple[Tensor, float]:
    """Scale and background (m, 1 + k) of each image by least squares, and the sum of squares that is left.

    bare : with relative heights.
    """
    basis, inside = basis_for(bare, stack), stack.inside.flatten()

    def of_images(rows: Tensor) -> tuple[Tensor, Tensor]:
        part = bare.images(rows)
        signal = signal_of(part, lay_out(part, stack))
        columns = (
            torch.cat((signal[:, None], basis.expand(len(signal), -1, -1, -1)), 1).flatten(2)[..., inside].double()
        )
        images = stack.images[rows].double().flatten(1)[:, inside, None]
        found = least_squares(columns @ columns.mT, columns @ images)
        return found[..., 0], (images - columns.mT @ found).square().sum((1, 2))

    found, left = map_over(of_images, image_batches(len(stack), batch_size, stack.images.device))
    return found, float(left.sum())
