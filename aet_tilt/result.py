"""What a run on a tilt series made: the result, and what is said of its atoms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from ase import Atoms

from aet_tilt.maps import Maps
from common.atoms.analysis import AnalysisSettings, Findings, analyse_if_enough
from common.atoms.species import Species, assign_species
from common.atoms.spot_model import Prediction, SpotModel
from common.atoms.verification import MultisliceCheck
from common.data import ImageStack, Poses


@dataclass(frozen=True)
class Fitted:
    """model : atoms and poses from all images. left_out : how well images left out are predicted without them."""

    model: SpotModel
    left_out: Prediction


@dataclass(frozen=True)
class Reconstruction:
    """What a run made; what it did not come to is None. metrics : name with unit -> number.

    stack : the images as they were fitted. poses : of these. atoms : with all that is known of each.
    findings : what the atoms are arranged in. multislice : images of the atoms by multislice against the measured ones.
    again : the atoms that the whole chain finds in multislice images of the first.
    """

    stack: ImageStack
    poses: Poses
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    maps: Maps | None = None
    model: SpotModel | None = None
    left_out: Prediction | None = None
    atoms: Atoms | None = None
    species: Species | None = None
    findings: Findings | None = None
    multislice: MultisliceCheck | None = None
    again: Atoms | None = None

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        if self.atoms is not None:
            return f"{len(self.atoms)} atoms ({self.atoms.get_chemical_formula()}) found."
        if self.maps is not None:
            return "A volume; no atoms were sought."
        return "Aligned images; no volume was made."


def with_atoms(
    result: Reconstruction, fitted: Fitted, elements: tuple[str, ...], analysis: AnalysisSettings
) -> Reconstruction:
    """Add refined atoms and poses, and how well images left out are predicted."""
    model, left_out = fitted.model, fitted.left_out
    numbers = {
        "position_sigma_pm": model.sigma_pm,
        "position_bound_pm": model.bound_pm,
        "held_out_r1": left_out.r1,
        "held_out_correlation": left_out.correlation,
        "gain": float(model.state.noise.gain[0]),
        "misfit": float(model.state.noise.misfit[0]),
    }
    refined = replace(result, poses=model.poses, model=model, left_out=left_out)
    return with_structure(refined, model.atoms, elements, analysis, numbers)


def with_structure(
    result: Reconstruction,
    atoms: Atoms,
    elements: tuple[str, ...],
    analysis: AnalysisSettings,
    numbers: Mapping[str, float],
) -> Reconstruction:
    """Add the atoms, how likely each is of which species, and the structure that they make.

    numbers : metrics of how they were found.
    """
    atoms, species = atoms.copy(), None
    numbers = {"atoms": float(len(atoms)), **numbers}
    if elements:
        heights = torch.as_tensor(atoms.arrays["peak_height"])
        species = assign_species(heights, elements, positions=torch.as_tensor(atoms.positions))
        for element, column in zip(species.elements, species.probabilities.T, strict=True):
            atoms.set_array(f"probability_{element}", column.numpy())
            numbers[f"atoms_{element}"] = float(species.symbols.count(element))
    atoms, findings = analyse_if_enough(atoms, analysis)
    numbers |= {} if findings is None else findings.metrics()
    return replace(
        result,
        metrics={**result.metrics, **numbers},
        atoms=atoms,
        species=species,
        findings=findings,
    )
