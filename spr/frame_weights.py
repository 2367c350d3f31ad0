"""What each frame is worth to a particle: how much of the usual signal it holds, and why where little."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightSettings:
    """What makes a frame poor.

    least_signal : fraction of the typical signal below which a particle's frame counts as empty.
    least_fringes : fraction of the typical graphene contrast below which a frame counts as blurred or out of focus.
    least_dose : fraction of the typical mean intensity below which a frame counts as dark.
    least_weight : of a frame in which the particle shows no lattice planes: its atoms still do.
    smoothing : frames over which a particle's signal is averaged; single frames are too noisy to be judged.
    """

    least_signal: float = 0.05
    least_fringes: float = 0.4
    least_dose: float = 0.5
    least_weight: float = 0.05
    smoothing: int = 25


@dataclass(frozen=True)
class FrameWeights:
    """weights : (n,) in [0, 1], 1 for a typical frame or better. reasons : (n,) in words, "" for nothing wrong."""

    weights: Tensor
    reasons: tuple[str, ...]


def weigh_frames(
    gain: Tensor,
    seen: Tensor,
    overlapped: Tensor,
    intensity: Tensor,
    fringes: Tensor,
    settings: WeightSettings | None = None,
) -> FrameWeights:
    """Weights of one particle's frames.

    Parameters
    ----------
    gain : (n,) nats by which a frame shows the particle where its track is.
    seen : (n,) bool, False where the particle was lost or out of the field.
    overlapped : (n,) bool, True where another particle lies over it.
    intensity : (n,) mean of each frame.
    fringes : (n, groups) contrast of each group of graphene's reflections, 1 for the mean; groups may be none.
        The first of each sheet's rings says focus, a finer ring blur.

    Returns
    -------
    FrameWeights: 1 where the signal (gain averaged over some frames, since a particle off every zone axis shows
    little too) is above 4 times ``least_signal`` of the median, less
    below it, 0 where the particle is lost, overlapped or dark.
    """
    settings = settings or WeightSettings()
    n = len(gain)
    width = min(settings.smoothing, n) // 2 * 2 + 1
    padded = torch.nn.functional.pad(gain[None, None].float(), (width // 2, width // 2), mode="replicate")
    smooth = torch.nn.functional.avg_pool1d(padded, width, 1)[0, 0]
    usable = seen & ~overlapped
    typical = float(smooth[usable].median()) if bool(usable.any()) else 0.0
    signal = (smooth / typical).clamp(0, 1) if typical > 0 else torch.zeros(n)
    contrast = fringes.float().mean(1) if fringes.shape[1] else torch.ones(n)
    dose = intensity.float() / intensity.float().median().clamp(min=1e-30)
    poor = {
        "lost": ~seen,
        "overlaps another particle": overlapped,
        "dark": dose < settings.least_dose,
        "blurred or out of focus": contrast < settings.least_fringes * float(contrast.median()),
        "empty": signal < settings.least_signal,
    }
    weights = (signal / (4 * settings.least_signal)).clamp(settings.least_weight, 1)
    for name in ("lost", "overlaps another particle", "dark"):
        weights[poor[name]] = 0.0
    weights = torch.where(poor["blurred or out of focus"], 0.25 * weights, weights)
    reasons = tuple(next((name for name, where in poor.items() if bool(where[t])), "") for t in range(n))
    return FrameWeights(weights, reasons)
