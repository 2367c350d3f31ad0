"""What a report shows of several structures, and of one against multislice images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MultisliceScores:
    """How well images by multislice agree with the measured ones; correlations of whitened images.

    numbers : (k,) 1-based rows of the input.
    model : (k,) of measured image and refined model. multislice : (k,) of measured image and multislice image.
    between : (k,) of multislice image and refined model, both without noise.
    b_factor : angstrom^2, of the atoms in the multislice.
    """

    numbers: Tensor
    model: Tensor
    multislice: Tensor
    between: Tensor
    b_factor: float


@dataclass(frozen=True)
class StructureDifference:
    """One atom of two structures laid on each other.

    atom_first, atom_second : numbers from 1, None where it is in one only. distance : angstrom, between the two.
    sigmas : that in units of its error. place_first, place_second : angstrom, in the frame of the first.
    what : "moved", "same", or where it is.
    """

    atom_first: int | None
    atom_second: int | None
    distance: float | None
    sigmas: float | None
    place_first: tuple[float, float, float] | None
    place_second: tuple[float, float, float] | None
    what: str


@dataclass(frozen=True)
class Structures:
    """Structures found in one stack.

    classes : of each, images, mean posterior of these, share of them above 0.99, atoms, median sigma (pm), resolution
        (angstrom).
    differences : of each pair, the numbers of both and the atoms that differ. mirrored : of each pair, whether the
        second is shown as its mirror image. shared : of each pair, atoms in both.
    """

    classes: tuple[tuple[int, float, float, float, float, float], ...]
    differences: tuple[tuple[int, int, tuple[StructureDifference, ...]], ...] = ()
    mirrored: tuple[bool, ...] = ()
    shared: tuple[int, ...] = ()
