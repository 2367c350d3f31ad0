"""What comes of images by another program's physics: how they agree with the measured ones and with the model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
