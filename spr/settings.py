"""The settings of the whole road from images to atoms."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ase.data import atomic_numbers

from common.atoms.analysis import AnalysisSettings
from common.atoms.pose_search import PoseSearchSettings
from common.atoms.refinement import RefinementSettings
from common.atoms.tracing import TracingSettings
from common.data import InputError
from common.rotations import point_group
from spr.ab_initio import SearchSettings
from spr.consensus import ConsensusSettings
from spr.refinement import RefineSettings


@dataclass(frozen=True)
class Settings:
    """How a structure is found.

    element : chemical symbol of the atoms, such as Au; helps to tell atoms apart, "X" when unknown.
    seed : of all random numbers; the same seed gives the same result.
    symmetry : point group of the particle, such as C1, C2, D3, T, O, I.
    multislice_images : so many images are compared with multislice images of the final atoms; needs abTEM.
    held_out_fraction : of the images, left out of all fits; noise and particle size are measured on all images.
    focal_spread : angstrom, rms; first guess where the file gives none, refined later.
    search : one start of the search for orientations.
    starts : how many of them, and when they agree.
    refinement : of poses against the map.
    tracing : of atoms in the map.
    first_steps : of the first fit of atoms, before doubtful poses are searched with them.
    pose_search : all poses again, against the atoms.
    atoms : atoms and poses against the images.
    analysis : of the structure that the atoms make.
    """

    element: str = "X"
    seed: int = 0
    symmetry: str = "C1"
    held_out_fraction: float = 0.05
    multislice_images: int = 0
    focal_spread: float = 40.0
    search: SearchSettings = field(default_factory=SearchSettings)
    starts: ConsensusSettings = field(default_factory=ConsensusSettings)
    refinement: RefineSettings = field(default_factory=RefineSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)
    first_steps: int = 6
    pose_search: PoseSearchSettings = field(default_factory=PoseSearchSettings)
    atoms: RefinementSettings = field(default_factory=RefinementSettings)
    analysis: AnalysisSettings = field(default_factory=AnalysisSettings)

    def __post_init__(self) -> None:
        if not 0 < self.held_out_fraction < 0.5:
            raise InputError(f"the held-out fraction is {self.held_out_fraction}, expected a number between 0 and 0.5")
        if self.first_steps < 1:
            raise InputError(f"first_steps is {self.first_steps}, expected at least 1")
        if self.multislice_images < 0:
            raise InputError(f"multislice_images is {self.multislice_images}, expected 0 or more")
        if self.element not in atomic_numbers:
            raise InputError(
                f"the element is {self.element!r}, expected a chemical symbol such as Au, or X when unknown"
            )
        point_group(self.symmetry)

    def tracing_of_element(self) -> TracingSettings:
        known = None if self.element == "X" else self.element
        return self.tracing if self.tracing.element else replace(self.tracing, element=known)
