"""Normal equations of atoms against images, never formed: products with a vector, own parameters eliminated.

With the derivatives A of the images by the shared parameters (atoms), B by an image's own (pose, scale, blur,
background), inverse variances W and the priors' P, the reduced matrix is ``A' (W - W B (B' W B + P)^-1 B' W) A`` (Schur
complement [1]_, section 6.1).

References
----------
.. [1] B. Triggs et al., "Bundle Adjustment - A Modern Synthesis", LNCS 1883, 298 (2000).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.atoms.spot_image import (
    CountNoise,
    SpotParameters,
    basis_for,
    image_batches,
    lay_out,
    out_of_focus,
    signal_of,
    variances,
)
from common.atoms.spot_rendering import Patches, correlate_spots, render_spots
from common.data import Focus, ImageStack
from common.iteration import step_generator
from common.parallel import ahead, map_over, own_parts, sum_over


@dataclass(frozen=True)
class Shared:
    """A vector of the shared parameters. atoms : (n, 4) height and position. widening : (g,) variance of each group,
    angstrom^2, at unchanged overlap: the heights go along."""

    atoms: Tensor
    widening: Tensor

    def __add__(self, other: Shared) -> Shared:
        return Shared(self.atoms + other.atoms, self.widening + other.widening)

    def __mul__(self, factor: float | Tensor) -> Shared:
        return Shared(self.atoms * factor, self.widening * factor)

    def dot(self, other: Shared) -> Tensor:
        return (self.atoms * other.atoms).sum() + (self.widening * other.widening).sum()


@dataclass(frozen=True)
class _Batch:
    """Some images, linearised. weight, residual : (b, d, d). columns : (b, q, d^2). inverse : (b, q, q)."""

    parameters: SpotParameters
    patches: Patches
    weight: Tensor
    residual: Tensor
    columns: Tensor
    inverse: Tensor
    slope: Tensor


@dataclass(frozen=True)
class Linearised:
    """The images about some parameters.

    groups : (n,) group of each atom that widens alike. precision : of the priors on the shared parameters. rows : of
    the images in each batch. batches : by their first image, those that this process works on.
    """

    rows: tuple[Tensor, ...]
    batches: Mapping[int, _Batch]
    groups: Tensor
    precision: Shared
    pixel_size: float

    def batch(self, rows: Tensor) -> _Batch:
        return self.batches[int(rows[0])]

    def total(self, part: Callable[[Tensor], Shared]) -> Shared:
        """The sum over all batches of what ``part`` makes of the images ``rows`` of each, over all processes."""

        def of_batch(rows: Tensor) -> tuple[Tensor, Tensor]:
            found = part(rows)
            return found.atoms, found.widening

        return Shared(*sum_over(of_batch, self.rows))


def linearise(
    parameters: SpotParameters,
    stack: ImageStack,
    noise: CountNoise,
    *,
    groups: Tensor,
    precision: Shared,
    own_precision: Tensor,
    own_offset: Tensor,
    batch_size: int,
    damping: float = 0.0,
) -> Linearised:
    """Prepare the products.

    Parameters
    ----------
    own_precision : (m, 7 + k) of the priors on each image's own parameters; infinite: not refined.
    own_offset : (m, 7 + k) how far they are from what the prior expects.
    damping : of Levenberg, for the images' own parameters.
    """
    basis = basis_for(parameters, stack)
    inside = stack.inside.to(basis)
    every = image_batches(len(parameters.scales), batch_size, parameters.scales.device)

    def of_images(rows: Tensor) -> _Batch:
        part, images = parameters.images(rows), stack.images[rows].to(basis)
        patches = lay_out(part, stack)
        signal = signal_of(part, patches)
        expected = signal + torch.einsum("mk,kyx->myx", part.backgrounds.to(basis), basis)
        weight = inside / noise.images(rows).variance(expected, signal)
        residual = (images - expected) * weight
        free = torch.isfinite(own_precision[rows])
        columns = _own_columns(part, patches, signal, basis, stack.pixel_size) * free[:, :, None].to(basis)
        prior = torch.where(free, own_precision[rows], 1.0)
        normal = torch.einsum("mqp,mp,mrp->mqr", columns, weight.flatten(1), columns).double()
        inverse = torch.linalg.inv(normal + torch.diag_embed(prior + damping * torch.diagonal(normal, dim1=1, dim2=2)))
        slope = (columns @ residual.flatten(1)[..., None])[..., 0].double()
        slope = torch.where(free, slope - prior * own_offset[rows], 0.0)
        return _Batch(part, patches, weight, residual, columns, inverse, slope)

    own = own_parts(every)
    batches = {int(rows[0]): batch for rows, batch in zip(own, ahead(of_images, own), strict=True)}
    return Linearised(every, batches, groups, precision, stack.pixel_size)


def _own_columns(part: SpotParameters, patches: Patches, signal: Tensor, basis: Tensor, pixel_size: float) -> Tensor:
    """(b, 7 + k, d^2) derivatives of the images by turns, shift, log scale, blur, background."""
    amplitude = (part.scales[:, None] * part.heights).to(basis)
    view = (part.positions @ part.rotations.mT).to(basis) / pixel_size
    x, y, z = view.unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x) / pixel_size
    moves = ((zero, -z), (z, zero), (-y, x), (one, zero), (zero, one))
    drawn = [render_spots(patches, 0 * amplitude, amplitude[..., None] * torch.stack(move, -1)) for move in moves]
    if part.focus is not None:  # turns about the view's x and y move atoms along the beam
        deeper = (amplitude * _widening_by_depth(part, part.focus, pixel_size) * pixel_size).to(basis)
        for turn, arm in enumerate((y, -x)):
            drawn[turn] = drawn[turn] + render_spots(patches, 0 * amplitude, None, deeper * arm)
    drawn.append(signal)
    drawn.append(render_spots(patches, 0 * amplitude, None, amplitude / pixel_size**2))
    whole = torch.stack(drawn, 1).flatten(2)
    return torch.cat((whole, basis.flatten(1).expand(len(whole), -1, -1)), 1)


def _along(batch: _Batch, system: Linearised, vector: Shared) -> Tensor:
    """How the images of a batch change with the shared parameters, (b, d, d)."""
    part, pixel = batch.parameters, system.pixel_size
    scale, kind = part.scales[:, None], batch.weight.dtype
    wide = vector.widening[system.groups] / pixel**2
    rise = vector.atoms[:, 0] + part.heights * wide / (2 * variances(part, pixel))
    move = (scale * part.heights)[..., None] * (vector.atoms[:, 1:] @ part.rotations[:, :2].mT) / pixel
    widen = scale * part.heights * wide
    if part.focus is not None:
        along_beam = part.rotations[:, 2] @ vector.atoms[:, 1:].mT
        widen = widen + scale * part.heights * along_beam * _widening_by_depth(part, part.focus, pixel)
    return render_spots(batch.patches, (scale * rise).to(kind), move.to(kind), widen.to(kind))


def _widening_by_depth(part: SpotParameters, focus: Focus, pixel_size: float) -> Tensor:
    """(b, n) pixels^2 by which a spot's variance grows for an angstrom along the beam."""
    return 2 * focus.opening**2 * out_of_focus(part, focus) / pixel_size**2


def _across(batch: _Batch, system: Linearised, images: Tensor) -> Shared:
    """The adjoint of `_along`."""
    return _sum_over_images(batch, system, correlate_spots(images, batch.patches).double())


def _sum_over_images(batch: _Batch, system: Linearised, found: Tensor) -> Shared:
    part, pixel = batch.parameters, system.pixel_size
    scale = part.scales[:, None]
    height = (scale * found[..., 0]).sum(0)
    place = ((scale * part.heights)[..., None] * (found[..., 1:3] @ part.rotations[:, :2])).sum(0) / pixel
    if part.focus is not None:
        depth = scale * part.heights * found[..., 3] * _widening_by_depth(part, part.focus, pixel)
        place = place + (depth[..., None] * part.rotations[:, None, 2]).sum(0)
    wide = scale * part.heights * (found[..., 3] + found[..., 0] / (2 * variances(part, pixel))) / pixel**2
    total = torch.zeros_like(system.precision.widening).index_add_(0, system.groups, wide.sum(0))
    return Shared(torch.cat((height[:, None], place), 1), total)


def _reduced(batch: _Batch, images: Tensor) -> Tensor:
    """``(W - W B (B' W B + P)^-1 B' W) images``."""
    weighted = batch.weight * images
    inner = (batch.columns @ weighted.flatten(1)[..., None]).double()
    own = (batch.inverse @ inner).to(images)
    return weighted - batch.weight * (batch.columns.mT @ own).reshape(images.shape)


def product(system: Linearised, vector: Shared) -> Shared:
    """The reduced matrix, priors included, times a vector."""

    def of_images(rows: Tensor) -> Shared:
        batch = system.batch(rows)
        return _across(batch, system, _reduced(batch, _along(batch, system, vector)))

    prior = Shared(system.precision.atoms * vector.atoms, system.precision.widening * vector.widening)
    return prior + system.total(of_images)


def image_slope(system: Linearised, factors: Tensor | None = None) -> Shared:
    """The gradient of the log-likelihood, own parameters eliminated, without the priors on the shared ones.

    factors : (m,) what the gradient of each image is multiplied by; 1 when None.
    """

    def of_images(rows: Tensor) -> Shared:
        batch = system.batch(rows)
        own = (batch.inverse @ batch.slope[..., None]).to(batch.weight)
        rest = batch.residual - batch.weight * (batch.columns.mT @ own).reshape(batch.residual.shape)
        if factors is not None:
            rest = rest * factors[rows, None, None].to(rest)
        return _across(batch, system, rest)

    return system.total(of_images)


def noise_slope(system: Linearised, generator: torch.Generator) -> Shared:
    """The gradient that images of noise alone would have, drawn with the variances of the model."""
    # each batch has numbers of its own, so that a process need not draw what others work on
    device = generator.device
    seed = int(torch.randint(2**62, (1,), generator=generator, device=device))

    def of_images(rows: Tensor) -> Shared:
        batch = system.batch(rows)
        own = step_generator(seed, int(rows[0]), device)
        drawn = torch.randn(batch.weight.shape, generator=own, device=device, dtype=batch.weight.dtype)
        drawn = drawn / batch.weight.sqrt().clamp(min=1e-18)  # none comes from where nothing was measured
        return _across(batch, system, _reduced(batch, drawn))

    return system.total(of_images)


def own_step(system: Linearised, vector: Shared) -> Tensor:
    """(m, 7 + k) the step of each image's own parameters that goes with a step of the shared ones."""

    def of_images(rows: Tensor) -> tuple[Tensor]:
        batch = system.batch(rows)
        weighted = batch.weight * _along(batch, system, vector)
        inner = (batch.columns @ weighted.flatten(1)[..., None])[..., 0].double()
        return ((batch.inverse @ (batch.slope - inner)[..., None])[..., 0],)

    return map_over(of_images, system.rows)[0]


def own_variances(system: Linearised) -> Tensor:
    """(m, 7 + k) posterior variances of the own parameters, atoms given."""
    return map_over(lambda rows: (torch.diagonal(system.batch(rows).inverse, dim1=1, dim2=2),), system.rows)[0]
