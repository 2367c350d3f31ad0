"""Many random starts, and which of them found the same structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from ase import Atoms
from torch import Tensor

from common.atoms.comparison import same_structure
from common.atoms.tracing import TracingSettings, find_atoms
from common.data import InputError, Poses, Volume
from common.iteration import Observer
from spr.ab_initio import SearchSettings, SearchState, search, volume_of
from spr.pose_assignment import assign
from spr.ring_images import RingImages
from spr.ring_sampling import SearchGrid

ATOMS_SHARED = "atoms shared, up to rotation and hand"
SAMPLE = 250  # images by which starts are compared


@dataclass(frozen=True)
class ConsensusSettings:
    """How many starts are made, and when they agree.

    most : starts at most; no more are made once enough of them agree.
    quick : of weak images, the first starts, which cool as those of strong ones do; those after them take their time.
    narrow : of strong images, starts that look at the strongest rings alone, as the first ones do; those after them
        look at finer rings too and take their time.
    agreeing : starts that must agree, the likeliest among them.
    same_atoms : fraction of atoms within 0.5 angstrom, up to rotation and hand, from which two starts agree.
    """

    most: int = 10
    quick: int = 2
    narrow: int = 5
    agreeing: int = 2
    same_atoms: float = 0.7

    def __post_init__(self) -> None:
        if self.narrow < 0:
            raise InputError(f"{self.narrow} starts look at the strongest rings alone, expected 0 or more")
        if self.quick < 0:
            raise InputError(f"{self.quick} starts are quick, expected 0 or more")
        if not 1 <= self.agreeing <= self.most:
            raise InputError(
                f"{self.agreeing} of at most {self.most} starts must agree, expected 1 <= agreeing <= most"
            )


@dataclass(frozen=True)
class Start:
    """What one start came to.

    poses : of all images for the likeliest start, of a sample for the others. log_likelihood : nats per image, mean
        over the sample. atoms : as traced, maybe none.
    """

    state: SearchState
    poses: Poses
    log_likelihood: float
    atoms: Atoms


@dataclass(frozen=True)
class Consensus:
    """starts : all that were made. agreement : (s, s) fraction of atoms that two starts share.

    best : number of the likeliest start. agrees : (s,) booleans, the starts that found the same as the best.
    reached : as many agree as were asked for. before : starts in another band that did not agree.
    shared : in words, what the agreement is the fraction of.
    """

    starts: tuple[Start, ...]
    agreement: Tensor
    best: int
    agrees: Tensor
    reached: bool
    before: int = 0
    shared: str = ATOMS_SHARED


def agree(
    images: RingImages,
    grid: SearchGrid,
    search_settings: SearchSettings,
    tracing: TracingSettings,
    settings: ConsensusSettings,
    *,
    seed: int,
    patient: SearchSettings | None = None,
    before: int = 0,
    symmetry: Tensor | None = None,
    observers: Sequence[Observer] = (),
) -> Consensus:
    """Start from random maps until enough starts agree with the likeliest.

    patient : how the starts after the quick ones search; as these when None.

    Two starts that share nothing but the images find the same structure only where the images hold it: so agreement,
    not the likelihood of a single start, is what decides. ``before`` starts were made in another band: the likelihoods
    of two bands cannot be compared.
    """
    starts: list[Start] = []
    n = len(images)
    sample = torch.linspace(0, n - 1, min(n, SAMPLE), device=images.centres.device).round().long()
    agreement = torch.eye(settings.most)
    while True:
        number = len(starts)
        name = f"search/start-{before + number + 1}"
        own_seed = seed * 1000 + before + number
        how = search_settings if patient is None or number < settings.quick else patient
        state = search(images, grid, how, seed=own_seed, name=name, symmetry=symmetry, observers=observers)
        found = assign(state, images, grid, search_settings, seed=own_seed, rows=sample)
        starts.append(
            Start(state, found.poses, float(found.log_likelihood.mean()), traced(volume_of(state, grid), tracing))
        )
        for other in range(number):
            shared = shared_atoms(starts[other].atoms, starts[number].atoms)
            agreement[other, number] = agreement[number, other] = shared
        consensus = judge(tuple(starts), agreement[: number + 1, : number + 1], settings)
        if consensus.reached or len(starts) == settings.most:
            break
    best = starts[consensus.best]
    poses = assign(best.state, images, grid, search_settings, seed=seed * 1000 + before + consensus.best).poses
    starts[consensus.best] = replace(best, poses=poses)
    return replace(consensus, starts=tuple(starts), before=before)


def judge(
    starts: tuple[Start, ...], agreement: Tensor, settings: ConsensusSettings, shared: str = ATOMS_SHARED
) -> Consensus:
    """Who agrees with the likeliest start.

    Where the likeliest agrees with nobody but others do agree, it is still the likeliest that counts: a wrong structure
    found twice has a lower likelihood than a right one found once.
    """
    best = max(range(len(starts)), key=lambda i: starts[i].log_likelihood)
    agrees = agreement[best] >= settings.same_atoms
    agrees[best] = True
    reached = int(agrees.sum()) >= settings.agreeing
    return Consensus(starts, agreement.clone(), best, agrees, reached, shared=shared)


def traced(volume: Volume, settings: TracingSettings) -> Atoms:
    """The atoms of a start's map; none where there are none to be found."""
    try:
        return find_atoms(Volume(volume.values.cpu(), volume.voxel_size), settings).atoms
    except InputError:
        return Atoms()


def shared_atoms(a: Atoms, b: Atoms) -> float:
    """Fraction of atoms that two lists share, up to rotation and hand; 0 when either is too short to compare."""
    if min(len(a), len(b)) < 4:
        return 0.0
    return same_structure(a, b)[0]
