"""How counts scatter about a model of Gaussian atoms, learned from what the model leaves over."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from common.atoms.spot_image import CountNoise, SpotParameters, compared, image_batches
from common.data import ImageStack
from common.least_squares import least_squares
from common.parallel import sum_over


def flat_noise(stack: ImageStack) -> CountNoise:
    """A first guess: electrons are counted one by one, and what the darkest tenth of each image scatters more is read
    noise; images below zero on average, or in other units, get all of their scatter there."""
    images = stack.images.flatten(1)[:, stack.inside.flatten()].double()
    dark = images.topk(max(2, images.shape[1] // 10), dim=1, largest=False).values
    spread = (images[:, 1:] - images[:, :-1]).square().median(1).values / 0.91  # of two equal normal variables
    level = images.mean(1).clamp(min=1e-12)
    gain = (spread / level).median().clamp(min=1e-12)
    read = (dark.mean(1).clamp(max=0).abs() * gain).median()
    m = len(stack)
    return CountNoise(gain.expand(m).clone(), read.expand(m).clone(), torch.zeros_like(gain).expand(m).clone())


def measure_noise(
    parameters: SpotParameters, stack: ImageStack, noise: CountNoise, *, misfit: bool, batch_size: int = 8
) -> CountNoise:
    """Gain, read noise and misfit, one of each for all images, from the squared residuals of a model.

    Parameters
    ----------
    noise : the last estimate; gives the weights.
    misfit : whether what the model leaves out, in proportion to the signal, is told from counting noise.

    Notes
    -----
    Least squares of the squared residuals on the expected counts, a constant and the squared signal, weighted by the
    inverse square of the variance, none negative: the best of all subsets of the three.
    """
    device = stack.images.device

    def of_images(rows: Tensor) -> tuple[Tensor, ...]:
        expected, signal, images, inside = compared(parameters, stack, rows)
        weight = (inside / noise.images(rows).variance(expected, signal)).double().flatten()
        terms = torch.stack((expected, torch.ones_like(expected), signal**2)).flatten(1).double() * weight
        square = (images - expected).square().double().flatten() * weight
        return terms @ terms.T, terms @ square, square @ square

    batches = image_batches(len(parameters.scales), batch_size, parameters.scales.device)
    matrix, right, squares = sum_over(of_images, batches)
    total = float(squares)
    best, chosen = total, torch.zeros(3, dtype=torch.float64, device=device)
    usable = (0, 1, 2) if misfit else (0, 1)
    for size in range(1, len(usable) + 1):
        for subset in combinations(usable, size):
            index = torch.tensor(subset, device=device)
            value = least_squares(matrix[index][:, index], right[index, None])[:, 0]
            cost = total - 2 * float(value @ right[index]) + float(value @ matrix[index][:, index] @ value)
            if bool((value >= 0).all()) and cost < best:
                best, chosen = cost, torch.zeros_like(chosen).index_copy(0, index, value)
    m = len(parameters.scales)
    least = 1e-3 * noise.gain.median().to(chosen)
    gain, read, square = torch.maximum(chosen[0], least), chosen[1], chosen[2]
    return CountNoise(*(v.expand(m).clone() for v in (gain, read, square.sqrt())))
