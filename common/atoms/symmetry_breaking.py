"""What breaks a particle's near symmetry, found from images whose poses are known only up to that symmetry.

A particle that nearly maps onto itself has several poses that explain an image nearly alike. Poses that were found with
a symmetric model mix them, the model stays the average over the operations, and the small displacements that make the
particle what it is are lost. Here the average is the point about which images are linear in the displacements; every
image may have been seen through any of the operations, and expectation maximisation over these finds both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.atoms.information import curvature_of_image, slope_of
from common.atoms.likelihood import Measurement, Parameters
from common.atoms.model import AtomicModel, evaluate
from common.atoms.pseudo_symmetry import Operations
from common.atoms.refinement import prepare
from common.atoms.shared import RefinementSettings, layout_of, priors_of, rigid_motions
from common.data import ImageStack
from common.iteration import step_generator
from common.noise import NoiseModel
from common.parallel import map_over_shards

_MEMORY = 1.5e9  # bytes, of the curvatures of the images that are held at once
_SETTLED = 0.01  # of the sigmas, rms; a smaller step ends it
_FEWEST = 100  # images


@dataclass(frozen=True)
class Slopes:
    """What images say about displacements q = (positions, heights), 4 n numbers, from the symmetric atoms.

    gradients : (m, 4 n) of the log-likelihood at the symmetric atoms. curvatures : (m, 4 n, 4 n), single precision;
    each image's own pose, gain and defocus are eliminated from both.
    """

    gradients: Tensor
    curvatures: Tensor


@dataclass(frozen=True)
class Mixture:
    """One state of expectation maximisation.

    change : (4 n,) displacements of positions (angstrom), then of heights, from the symmetric atoms.
    precision : (4 n,) of their normal prior: one variance for all coordinates and one for all heights, both estimated.
    evidence : nats that all images gain over the symmetric atoms, all operations alike beforehand.
    proof : the same with the displacements integrated out (Laplace), so that it is below 0 where they only fit noise.
    posterior : (m, g) of the operations of each image.
    pull : (4 n,) slope of the evidence.
    """

    change: Tensor
    precision: Tensor
    evidence: float
    proof: float
    posterior: Tensor
    pull: Tensor


@dataclass(frozen=True)
class Broken:
    """Atoms without the symmetry that the model had, and what speaks for them.

    model : atoms and poses; sigmas as for unknown operations. proof : nats over the symmetric atoms, complexity paid.
    certainty : mean posterior of each image's best operation, in (0, 1].
    spread : angstrom per axis, rms, of the displacements that were found.
    limit : angstrom per axis, rms; of smaller displacements the images can hardly tell.
    operations : how many, the identity counted.
    """

    model: AtomicModel
    proof: float
    certainty: float
    spread: float
    limit: float
    operations: int

    @property
    def believed(self) -> bool:
        return self.proof > 0


def break_symmetry(
    stack: ImageStack,
    noise: NoiseModel,
    model: AtomicModel,
    operations: Operations,
    settings: RefinementSettings | None = None,
    *,
    starts: int = 3,
    iterations: int = 100,
    seed: int = 0,
) -> Broken:
    """Find the displacements that break the ``operations``, and through which of them each image was seen.

    Parameters
    ----------
    stack, noise, model : refined; poses right up to the operations.
    operations : at least two, from `common.atoms.pseudo_symmetry.pseudo_symmetries` of the model's positions.
    starts : random displacements from which to start, beside those that the model has already.
    iterations : most of each start.

    Returns
    -------
    The likeliest; its model has, of each image, the pose through the likeliest operation.

    Notes
    -----
    With gradient b and curvature H of an image at the symmetric atoms, the displacements q seen through operation g
    gain ``b' (P_g q) - (P_g q)' H (P_g q) / 2`` nats, where P_g moves what belongs to an atom to the one it comes to
    lie on. Projections do not see the sign of z, so operations of either hand count alike. The displacements have a
    normal prior whose variance is estimated with them [1]_: it falls to nothing where the images do not ask for any.
    Near zero the images' scores tell the operations apart only in third order (as in multi-reference alignment), so
    starts are as large as displacements must be to be seen. The sigmas have what not knowing the operation costs [2]_.

    References
    ----------
    .. [1] D. J. C. MacKay, "Bayesian interpolation", Neural Computation 4, 415 (1992).
    .. [2] T. A. Louis, "Finding the observed information matrix when using the EM algorithm",
       J. R. Stat. Soc. B 44, 226 (1982).
    """
    settings = settings or RefinementSettings()
    symmetric = symmetrised(model.parameters, operations)
    present = torch.cat(((model.positions - symmetric.positions).flatten(), model.heights - symmetric.heights))
    data = prepare(stack, noise, model.parameters, settings)[1]
    m, n = len(data), len(model.heights)
    held = max(_FEWEST, int(_MEMORY / (4 * len(present) ** 2)))  # images at once
    rows = torch.randperm(m, generator=step_generator(seed, 1))[:held].sort().values.to(model.weights.device)
    slopes = slopes_of_images(symmetric, data, rows, model.weights, settings)
    stiffness = mean_curvature(slopes, operations, symmetric.positions)
    limit = seen_from(stiffness, len(rows), operations)
    first = [present]
    for number in range(starts):
        draw = torch.randn(3 * n, generator=step_generator(seed, 2 + number), dtype=torch.float64).to(present)
        first.append(torch.cat((limit * draw, torch.zeros_like(present[3 * n :]))))
    found = [maximise(start, slopes, operations, stiffness, iterations) for start in first]
    best = max(found, key=lambda one: one.proof)
    posterior = best.posterior
    if len(rows) < m:
        parts = torch.arange(m, device=rows.device).split(held)
        each = (slopes_of_images(symmetric, data, part, model.weights, settings) for part in parts)
        posterior = torch.cat([posterior_of(best.change, part, operations)[0] for part in each])
    place, height = best.change.split([3 * n, n])
    moved = replace(symmetric, positions=symmetric.positions + place.reshape(n, 3), heights=symmetric.heights + height)
    chosen = operations.matrices[posterior.argmax(1)]
    parameters = seen_through(moved, chosen, model.positions.mean(0))
    covariance = covariance_of(best, slopes, operations, symmetric.positions, stiffness) * (len(rows) / m)
    sigma = torch.sqrt(covariance.diagonal().reshape(n, 3).mean(1))
    scored = evaluate(model.symbols, parameters, data, model.weights, settings.batch_size)
    return Broken(
        replace(scored, covariance=covariance, position_sigma=sigma, cramer_rao_pm=model.cramer_rao_pm),
        best.proof,
        float(posterior.amax(1).mean()),
        float(place.square().mean().sqrt()),
        limit,
        len(operations),
    )


def seen_from(stiffness: Tensor, m: int, operations: Operations) -> float:
    """Angstrom per axis, rms, from which displacements give an image as many nats as it takes to name its operation."""
    n3 = 3 * len(stiffness) // 4
    per_image = float(stiffness.diagonal()[:n3].sum()) / (2 * m)
    return math.sqrt(math.log(len(operations)) / per_image)


def symmetrised(parameters: Parameters, operations: Operations) -> Parameters:
    """The parameters with positions and heights averaged over the operations."""
    g = len(operations)
    middle = parameters.positions.mean(0)
    centred = (parameters.positions - middle).expand(g, -1, 3)
    heights = parameters.heights.expand(g, -1)
    return replace(
        parameters,
        positions=middle + operations.turned_back(centred) / g,
        heights=operations.moved_back(heights) / g,
    )


def in_like_pose(rotations: Tensor, matrices: Tensor) -> Tensor:
    """The rotations (..., 3, 3) of views that see the atoms through operations (..., 3, 3) of either hand.

    Where the operation is of the other hand the view is turned over, which a projection does not see.
    """
    flip = torch.diag(rotations.new_tensor([1.0, 1.0, -1.0]))
    turned = rotations @ matrices
    return torch.where((torch.linalg.det(matrices) < 0)[..., None, None], flip @ turned, turned)


def seen_through(parameters: Parameters, matrices: Tensor, middle: Tensor) -> Parameters:
    """The parameters with each image's pose changed so that it sees the atoms through its operation (m, 3, 3)."""
    turned = in_like_pose(parameters.rotations, matrices)
    shifts = parameters.shifts + ((parameters.rotations - turned) @ middle)[:, :2]
    return replace(parameters, rotations=turned, shifts=shifts)


def slopes_of_images(
    parameters: Parameters, data: Measurement, rows: Tensor, weights: Tensor, settings: RefinementSettings
) -> Slopes:
    """Gradients and curvatures of the images ``rows``, times their ``weights`` (m,)."""
    layout, priors = layout_of(parameters, settings.refine_b_factors), priors_of(settings)
    used = 4 * layout.atoms
    own = {name: getattr(parameters, name)[rows] for name in ("rotations", "shifts", "gains", "defocus")}
    few, part = replace(parameters, **own), data[rows]
    slope = slope_of(few, part, priors=priors, layout=layout, damping=1e-7, batch_size=settings.batch_size)

    def bent(shard: Tensor) -> tuple[Tensor, ...]:
        each = [
            curvature_of_image(few, part, row, priors=priors, layout=layout)[:used, :used].float()
            for row in shard.to(rows.device).split(1)
        ]
        return (torch.stack(each),)

    (curvatures,) = map_over_shards(bent, len(rows))
    share = weights[rows]
    return Slopes(-slope.gradients[:, :used] * share[:, None], curvatures.mul_(share.float()[:, None, None]))


def acted(change: Tensor, operations: Operations) -> Tensor:
    """(g, 4 n) the displacements (4 n,) as seen through every operation."""
    n = len(change) // 4
    place, height = change.split([3 * n, n])
    return torch.cat((operations.turned(place.reshape(n, 3)).flatten(1), operations.moved(height)), 1)


def acted_back(values: Tensor, operations: Operations) -> Tensor:
    """Adjoint of `acted`: (4 n,) from (g, 4 n)."""
    n = values.shape[1] // 4
    place, height = values.split([3 * n, n], 1)
    return torch.cat((operations.turned_back(place.unflatten(1, (n, 3))).flatten(), operations.moved_back(height)))


def mean_curvature(slopes: Slopes, operations: Operations, positions: Tensor) -> Tensor:
    """(4 n, 4 n) sum over the images, averaged over the operations, stiff against rigid motions."""
    total = slopes.curvatures.sum(0, dtype=torch.float64)
    basis = torch.eye(len(total), dtype=total.dtype, device=total.device)
    g = len(operations)
    columns = [acted_back(acted(one, operations) @ total, operations) / g for one in basis]
    mean = torch.stack(columns, 1)
    rigid = rigid_motions(positions)
    n3 = len(rigid)
    mean[:n3, :n3] += mean.diagonal()[:n3].mean() * rigid @ rigid.T
    return (mean + mean.T) / 2 + torch.diag(1e-9 * mean.diagonal())


def posterior_of(change: Tensor, slopes: Slopes, operations: Operations) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior (m, g) of the operations, evidence (m,), and curvatures times displacements (m, 4 n, g)."""
    seen = acted(change, operations)
    bent = slopes.curvatures @ seen.T.float()
    scores = slopes.gradients @ seen.T - torch.einsum("gk,mkg->mg", seen.float(), bent).double() / 2
    return torch.softmax(scores, 1), torch.logsumexp(scores, 1) - math.log(len(operations)), bent


def expect(change: Tensor, precision: Tensor, slopes: Slopes, operations: Operations, stiffness: Tensor) -> Mixture:
    """Everything at the displacements ``change`` (4 n,) with the prior's ``precision`` (4 n,)."""
    posterior, evidence, bent = posterior_of(change, slopes, operations)
    seen = posterior.T @ slopes.gradients - torch.einsum("mg,mkg->gk", posterior.float(), bent).double()
    total = float(evidence.sum())
    spare = torch.log(precision).sum() - torch.logdet(stiffness + torch.diag(precision))
    proof = total + float(spare - (precision * change**2).sum()) / 2
    return Mixture(change, precision, total, proof, posterior, acted_back(seen, operations))


def maximise(start: Tensor, slopes: Slopes, operations: Operations, stiffness: Tensor, iterations: int) -> Mixture:
    """Expectation maximisation from the displacements ``start``, until nothing moves by a hundredth of its sigma."""
    n3 = 3 * len(start) // 4
    sigma2 = torch.linalg.inv(stiffness).diagonal()
    here = expect(start, prior_of(start, sigma2), slopes, operations, stiffness)
    for _ in range(iterations):
        inverse = torch.linalg.inv(stiffness + torch.diag(here.precision))
        step = inverse @ (here.pull - here.precision * here.change)
        change = here.change + step
        here = expect(change, prior_of(change, inverse.diagonal()), slopes, operations, stiffness)
        if float((step[:n3] ** 2 / sigma2[:n3]).mean()) < _SETTLED**2:
            break
    return here


def prior_of(change: Tensor, variance: Tensor) -> Tensor:
    """Precision (4 n,) of the displacements: the inverse mean square of coordinates and of heights, variance added."""
    n3 = 3 * len(change) // 4
    square = change**2 + variance
    return torch.cat([1 / part.mean().expand(len(part)) for part in (square[:n3], square[n3:])])


def covariance_of(
    found: Mixture, slopes: Slopes, operations: Operations, positions: Tensor, stiffness: Tensor
) -> Tensor:
    """(3 n, 3 n) of the positions without rigid motions: curvature less what not knowing the operation costs."""
    rigid = rigid_motions(positions)
    n3, n = len(rigid), len(positions)
    _, _, bent = posterior_of(found.change, slopes, operations)
    missing = torch.zeros_like(stiffness)
    for weight, gradient, curved in zip(found.posterior, slopes.gradients, bent, strict=True):
        seen = gradient[None] - curved.T.double()  # (g, 4 n) before it is moved back to the atoms
        place = torch.gather(seen[:, :n3].unflatten(1, (n, 3)), 1, operations.targets[..., None].expand(-1, -1, 3))
        place = torch.einsum("gij,gni->gnj", operations.matrices, place).flatten(1)
        each = torch.cat((place, torch.gather(seen[:, n3:], 1, operations.targets)), 1)
        each = each - weight @ each
        missing += each.T @ (weight[:, None] * each)
    information = stiffness - missing + torch.diag(found.precision)
    values, vectors = torch.linalg.eigh(information)
    values = values.clamp(min=0.05 * stiffness.diagonal().min())
    covariance = ((vectors / values) @ vectors.T)[:n3, :n3]
    half = covariance - rigid @ (rigid.T @ covariance)
    return half - (half @ rigid) @ rigid.T
