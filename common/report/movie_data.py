"""What a report shows of a movie."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from common.report.shapes import check_shapes


@dataclass(frozen=True)
class FilmedParticle:
    """One particle of a movie.

    path : (n, 2) of (x, y), angstrom from the first pixel, of all n frames. seen : (n,) booleans.
    radius : angstrom. outcome : in words. atoms : how many, None where none were found. report : where its page is.
    """

    path: Tensor
    seen: Tensor
    radius: float
    outcome: str
    atoms: int | None
    report: str


@dataclass(frozen=True)
class Filmed:
    """A movie and what was found in it.

    mean : (y, x) mean of its frames. pixel_size : angstrom.
    frequencies : (k,) 1/angstrom. before, after : (k,) strongest over typical power on each ring beside the particles,
        with the graphene and without.
    """

    mean: Tensor
    pixel_size: float
    frequencies: Tensor
    before: Tensor
    after: Tensor
    particles: tuple[FilmedParticle, ...] = ()

    def __post_init__(self) -> None:
        k = len(self.frequencies)
        check_shapes("movie", mean=(self.mean, (None, None)), before=(self.before, (k,)), after=(self.after, (k,)))
        for particle in self.particles:
            check_shapes("movie", path=(particle.path, (None, 2)), seen=(particle.seen, (len(particle.path),)))
