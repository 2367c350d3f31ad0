"""The settings of the whole road from a tilt series to atoms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ase.data import atomic_numbers

from aet_tilt.alignment import AlignmentSettings
from aet_tilt.film import FilmSettings
from aet_tilt.focus import FocusSettings
from aet_tilt.preprocessing import PreprocessingSettings
from aet_tilt.reconstruction.discrete import DiscreteSettings
from aet_tilt.reconstruction.lattice_search import LatticeSettings
from aet_tilt.reconstruction.methods import MethodOrAuto, ReconstructionSettings
from aet_tilt.verification import VerificationSettings
from common.atoms.analysis import AnalysisSettings
from common.atoms.peaks import PeakSettings
from common.atoms.spot_count import SpotCountSettings
from common.atoms.spot_settings import SpotSettings
from common.data import InputError

AnyMethod = Literal[MethodOrAuto, "discrete"]


@dataclass(frozen=True)
class Settings:
    """How a tilt series becomes atoms.

    elements : chemical symbols that are there, such as Pd,Au; none: atoms stay "X".
    method : of the reconstruction from which atoms are traced (they are refined against the images whichever it is);
        auto: the one that predicts images left out best, which takes many times as long; discrete: no volume, but the
        sites of a crystal that hold an atom, from two images and more.
    align : find shifts before the reconstruction; otherwise they are as given.
    held_out_every : one of so many images is left out to judge the atoms, >= 3.
    preprocessing : hot pixels, repeats, dose.
    alignment : of the images.
    reconstruction : of the volume.
    film : of a specimen that goes on past the images' borders.
    lattice : of the crystal, for discrete tomography. discrete : how its sites are filled.
    focus : of a through-focal series.
    tracing : of atoms in the volume.
    count : when an atom is real.
    atoms : atoms and poses against the counts.
    analysis : of the structure that the atoms make.
    verification : by multislice images of the final atoms.
    """

    elements: tuple[str, ...] = ()
    method: AnyMethod = "fbp"
    align: bool = True
    held_out_every: int = 7
    preprocessing: PreprocessingSettings = field(default_factory=PreprocessingSettings)
    alignment: AlignmentSettings = field(default_factory=AlignmentSettings)
    reconstruction: ReconstructionSettings = field(default_factory=ReconstructionSettings)
    film: FilmSettings = field(default_factory=FilmSettings)
    lattice: LatticeSettings = field(default_factory=LatticeSettings)
    discrete: DiscreteSettings = field(default_factory=DiscreteSettings)
    focus: FocusSettings = field(default_factory=FocusSettings)
    tracing: PeakSettings = field(default_factory=PeakSettings)
    count: SpotCountSettings = field(default_factory=SpotCountSettings)
    atoms: SpotSettings = field(default_factory=SpotSettings)
    analysis: AnalysisSettings = field(default_factory=AnalysisSettings)
    verification: VerificationSettings = field(default_factory=VerificationSettings)

    def __post_init__(self) -> None:
        if self.held_out_every < 3:
            raise InputError(f"every {self.held_out_every}th image is left out, expected at least every 3rd to stay")
        for element in ",".join(self.elements).split(",") if self.elements else ():
            if atomic_numbers.get(element, 0) < 1:
                raise InputError(f"the element is {element!r}, expected a chemical symbol such as Au")
