"""What comes of images by another program's physics: how they agree with the measured ones and with the model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

_AS_WELL = 0.95  # of the model's correlation with the images; below, something is wrong with the physics


@dataclass(frozen=True)
class MultisliceCheck:
    """Correlations of images.

    numbers : (k,) rows of the input, from 0. model : of measured images and the refined model.
    multislice : of measured images and multislice ones. between : of multislice images and the refined model.
    b_factor : angstrom^2, of the atoms in the multislice, with all blur.
    """

    numbers: Tensor
    model: Tensor
    multislice: Tensor
    between: Tensor
    b_factor: float

    def metrics(self) -> dict[str, float]:
        """Mean correlations, for the record of a run."""
        return {
            "multislice_correlation": float(self.multislice.mean()),
            "multislice_model_correlation": float(self.model.mean()),
            "multislice_between_correlation": float(self.between.mean()),
        }

    def doubts(self) -> list[str]:
        """A sentence where the images by multislice speak against the atoms."""
        model, multislice = float(self.model.mean()), float(self.multislice.mean())
        if multislice > _AS_WELL * model:
            return []
        return [
            f"Multislice images of the atoms agree worse with the measured images ({multislice:.3f}) than the refined "
            f"model does ({model:.3f}): the species, the aberrations or the thickness may be wrong."
        ]
