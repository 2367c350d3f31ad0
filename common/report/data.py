"""What a report shows: plain tensors, numbers, strings. Every section may be missing: a failed run has a page too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from common.atoms.analysis import Findings
from common.data import Optics
from common.report.movie_data import Filmed
from common.report.shapes import check_shapes
from common.report.structure_data import MultisliceScores, Structures

Outcome = Literal["determined", "doubtful", "not determined"]
OUTCOMES = ("determined", "doubtful", "not determined")


@dataclass(frozen=True)
class InputFile:
    """A file that was read. ``sha256`` in hexadecimal; ``size`` in bytes."""

    name: str
    sha256: str = ""
    size: int | None = None


@dataclass(frozen=True)
class Inputs:
    """What went in. ``box_size`` in pixels, ``pixel_size`` in angstrom."""

    files: tuple[InputFile, ...]
    n_images: int
    box_size: int
    pixel_size: float
    optics: Optics | None = None


@dataclass(frozen=True)
class FourierShellCorrelation:
    """Correlations by shell.

    frequencies : (k,) 1/angstrom.
    curves : what is compared, e.g. ``"half maps, masked"``, and its (k,) correlations; the first gives the resolution.
    resolution : angstrom, where the first curve crosses ``threshold``; None when it does not.
    """

    frequencies: Tensor
    curves: Mapping[str, Tensor]
    resolution: float | None = None
    threshold: float = 0.143

    def __post_init__(self) -> None:
        k = self.frequencies.shape[0]
        check_shapes("FSC", frequencies=(self.frequencies, (None,)))
        for name, values in self.curves.items():
            check_shapes("FSC", **{name: (values, (k,))})


@dataclass(frozen=True)
class Starts:
    """How independent starts compare.

    scores : (s,) higher is better.
    agreement : (s, s) in [0, 1], e.g. correlation of the aligned maps; None when not computed.
    agrees : (s,) booleans, which starts belong to the consensus.
    names : one each; "1", "2", ... when empty.
    """

    scores: Tensor
    score_name: str = "log-likelihood gain per image"
    score_unit: str = "nats"
    agreement: Tensor | None = None
    agreement_name: str = "correlation of aligned maps"
    agrees: Tensor | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        s = self.scores.shape[0]
        check_shapes("starts", scores=(self.scores, (None,)), agreement=(self.agreement, (s, s)))
        check_shapes("starts", agrees=(self.agrees, (s,)))
        if self.names and len(self.names) != s:
            raise ValueError(f"report, starts: {len(self.names)} names for {s} starts, expected one each or none")


@dataclass(frozen=True)
class Metric:
    """One line of a convergence plot: ``values`` (k,) at ``iterations`` (k,); lines of one ``name`` share a panel."""

    name: str
    iterations: Tensor
    values: Tensor
    unit: str = ""
    run: str = ""

    def __post_init__(self) -> None:
        k = self.iterations.shape[0]
        check_shapes(f"metric {self.name}", iterations=(self.iterations, (None,)), values=(self.values, (k,)))


@dataclass(frozen=True)
class Map:
    """The volume to show: ``values`` (d, d, d), indexed (z, y, x); ``voxel_size`` in angstrom."""

    values: Tensor
    voxel_size: float

    def __post_init__(self) -> None:
        check_shapes("volume", values=(self.values, (None, None, None)))


@dataclass(frozen=True)
class ImageExamples:
    """Measured images beside what the model predicts for them (`pick_examples` chooses which).

    numbers : (k,) 1-based rows of the input.
    groups : k of "best", "median", "worst".
    scores : (k,) higher is better.
    measured, model : (k, d, d), in the same unit.
    pixel_size : angstrom.
    """

    numbers: Tensor
    groups: tuple[str, ...]
    scores: Tensor
    measured: Tensor
    model: Tensor
    pixel_size: float
    score_name: str = "correlation"

    def __post_init__(self) -> None:
        k = self.numbers.shape[0]
        check_shapes("images", numbers=(self.numbers, (None,)), scores=(self.scores, (k,)))
        check_shapes("images", measured=(self.measured, (k, None, None)))
        check_shapes("images", model=(self.model, tuple(self.measured.shape)))
        if len(self.groups) != k:
            raise ValueError(f"report, images: {len(self.groups)} groups for {k} images, expected one each")


@dataclass(frozen=True)
class ClassAverages:
    """Classes of like views, in their order.

    averages : (k, d, d). pixel_size : angstrom. images : (k,) how many in each.
    correlation : (k,) mean ring correlation of independent halves; NaN where there were none.
    resolution : (k,) angstrom, where the halves stop to agree.
    rejected : (k,) booleans.
    """

    averages: Tensor
    pixel_size: float
    images: Tensor
    correlation: Tensor
    resolution: Tensor
    rejected: Tensor

    def __post_init__(self) -> None:
        k = self.averages.shape[0]
        check_shapes("classes", averages=(self.averages, (None, None, None)), images=(self.images, (k,)))
        check_shapes("classes", correlation=(self.correlation, (k,)), resolution=(self.resolution, (k,)))
        check_shapes("classes", rejected=(self.rejected, (k,)))


@dataclass(frozen=True)
class ImageScores:
    """How well each image is explained.

    values : (n,) higher is better; the order of the input.
    held_out : (n,) booleans, images left out of the refinement.
    unexplained : (n,) booleans, images that no pose explains.
    """

    values: Tensor
    held_out: Tensor | None = None
    unexplained: Tensor | None = None
    name: str = "correlation with the model"
    unit: str = ""

    def __post_init__(self) -> None:
        n = self.values.shape[0]
        check_shapes("scores", values=(self.values, (None,)))
        check_shapes("scores", held_out=(self.held_out, (n,)), unexplained=(self.unexplained, (n,)))


@dataclass(frozen=True)
class AtomSites:
    """The atoms found.

    positions : (n, 3) angstrom, (x, y, z).
    symbols : n chemical symbols, "X" while unknown.
    heights : (n,) peak height, linear unit of the model.
    b_factors : (n,) angstrom^2.
    sigmas : (n,) standard deviation of the position, angstrom; ``sigma_definition`` says of what.
    bounds : (n,) Cramér-Rao bound of the same quantity, angstrom.
    """

    positions: Tensor
    symbols: tuple[str, ...]
    heights: Tensor | None = None
    b_factors: Tensor | None = None
    sigmas: Tensor | None = None
    bounds: Tensor | None = None
    sigma_definition: str = "one standard deviation along one axis, root mean square over x, y, z"

    def __post_init__(self) -> None:
        n = self.positions.shape[0]
        check_shapes("atoms", positions=(self.positions, (None, 3)), heights=(self.heights, (n,)))
        check_shapes("atoms", b_factors=(self.b_factors, (n,)), sigmas=(self.sigmas, (n,)), bounds=(self.bounds, (n,)))
        if len(self.symbols) != n:
            raise ValueError(f"report, atoms: {len(self.symbols)} symbols for {n} atoms, expected one each")


@dataclass(frozen=True)
class ReportData:
    """Everything on the page; leave out what a run does not have.

    title : what was studied, e.g. the name of the particle file.
    verdict : the result in words: "68 atoms found; 4 of 4 starts agree", or "Not determined: why".
    outcome : how far it can be believed.
    warnings : what a reader must know before using the result, one sentence each.
    notes : what a reader should know, e.g. that the hand is not determined by projections.
    settings, versions : name and value; nested mappings are shown with dotted names.
    rotations : (n, 3, 3) poses of the images, ``view = R @ specimen``.
    seconds : CPU seconds by stage.
    findings : what the atoms are arranged in.
    """

    title: str
    verdict: str
    outcome: Outcome
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""
    date: str = ""
    inputs: Inputs | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, object] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    fsc: FourierShellCorrelation | None = None
    rotations: Tensor | None = None
    starts: Starts | None = None
    metrics: tuple[Metric, ...] = ()
    volume: Map | None = None
    examples: ImageExamples | None = None
    scores: ImageScores | None = None
    atoms: AtomSites | None = None
    multislice: MultisliceScores | None = None
    classes: ClassAverages | None = None
    structures: Structures | None = None
    movie: Filmed | None = None
    findings: Findings | None = None

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"report: outcome is {self.outcome!r}, expected one of {', '.join(OUTCOMES)}")
        check_shapes("poses", rotations=(self.rotations, (None, 3, 3)))
