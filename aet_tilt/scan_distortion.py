"""What the scan does to repeated frames of one view: drift within a frame, and lines that jitter.

A STEM image is scanned line by line, fast along a line and slowly from line to line. A specimen that drifts at a
constant velocity is sheared and stretched, by as much from the first to the last line as it moves from one frame to the
next; and each line is displaced a little along itself. Both are undone by moving lines by their Fourier coefficients,
which leaves white noise white; along the slow axis all lines are interpolated together.

References
----------
C. Ophus, J. Ciston and C. T. Nelson, "Correcting nonlinear drift distortion of scanning probe and scanning transmission
electron microscopies from image pairs with orthogonal scan directions", Ultramicroscopy 162, 1 (2016).
doi:10.1016/j.ultramic.2015.12.002
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.data import InputError
from common.fourier import shift_images
from common.registration import register_images

_ROUNDS = 4  # of reference and lines
_LARGEST = 1.0  # pixels that a line is moved in a round


@dataclass(frozen=True)
class ScanCorrection:
    """images : (k, d, d) frames of one view, their distortion undone.

    velocity : (k, 2) pixels per frame. jitter : pixels, rms of the lines.
    """

    images: Tensor
    velocity: Tensor
    jitter: float


def correct_scan(frames: Tensor, quarter_turns: Tensor, *, max_frequency: float = 0.25) -> ScanCorrection:
    """Undo the drift between and within consecutive frames of one view, and the jitter of their lines.

    Parameters
    ----------
    frames : (k, d, d), k >= 2, in the order of time, all turned to the same orientation.
    quarter_turns : (k,) integers: by how many quarter turns, from x towards y, each frame's lines lie from the x axis.
    max_frequency : cycles per pixel; noise beyond it does not take part in finding the drift.

    Notes
    -----
    Drift is constant from one frame's middle to the next one's; the flyback is taken to be short. What the lines of
    all frames have in common cannot be seen and stays.
    """
    if len(frames) < 2:
        raise InputError(f"{len(frames)} frame of a view, expected at least 2 to see a distortion in")
    velocity = torch.gradient(-registered(frames, max_frequency), dim=0)[0]
    still = torch.stack(
        [_without_drift(f, v, int(q)) for f, v, q in zip(frames, velocity, quarter_turns.tolist(), strict=True)]
    )
    straight = shift_images(still, registered(still, max_frequency))
    total = torch.zeros(frames.shape[:2], dtype=frames.dtype, device=frames.device)
    for _ in range(_ROUNDS):
        moves = _line_moves(straight, quarter_turns)
        straight = _with_lines_moved(straight, moves, quarter_turns)
        total = total + moves
    return ScanCorrection(straight, velocity, float(total.square().mean().sqrt()))


def registered(frames: Tensor, max_frequency: float) -> Tensor:
    """(k, 2) shifts of (x, y), pixels, their mean 0, that bring frames onto their mean."""
    shifts = torch.zeros(len(frames), 2, dtype=frames.dtype, device=frames.device)
    for _ in range(3):  # the reference sharpens as the drift is found
        reference = shift_images(frames, shifts).mean(0, keepdim=True)
        shifts = register_images(frames, reference, max_frequency=max_frequency)
        shifts = shifts - shifts.mean(0)
    return shifts


def _without_drift(frame: Tensor, velocity: Tensor, quarter_turns: int) -> Tensor:
    """A frame (d, d) of a specimen that moved by ``velocity`` (x, y), pixels, while it was scanned, as at rest."""
    lines = torch.rot90(frame, quarter_turns)
    along, across = _turned(velocity, quarter_turns)
    d = len(lines)
    time = (torch.arange(d, dtype=frame.dtype, device=frame.device) - d // 2) / d
    straight = _moved_lines(lines, -along * time)
    # line j was scanned at j, when the specimen was ahead by across * time: it shows what belongs to j - across * time
    place = torch.arange(d, dtype=frame.dtype, device=frame.device)
    wanted = place + across * time
    return torch.rot90(_sinc(wanted[:, None] - place, d) @ straight, -quarter_turns)


def _turned(vector: Tensor, quarter_turns: int) -> tuple[Tensor, Tensor]:
    """A vector's components along the lines and across them, as seen after ``torch.rot90(image, quarter_turns)``."""
    x, y = vector
    for _ in range(quarter_turns % 4):
        x, y = y, -x
    return x, y


def _sinc(distance: Tensor, d: int) -> Tensor:
    """Interpolation of a periodic band-limited signal of d samples, at a distance in samples."""
    n = (d - 1) // 2
    k = torch.arange(1, n + 1, dtype=distance.dtype, device=distance.device)
    kernel = 1 + 2 * torch.cos(2 * math.pi / d * distance[..., None] * k).sum(-1)
    if d % 2 == 0:
        kernel = kernel + torch.cos(math.pi * distance)
    return kernel / d


def _moved_lines(lines: Tensor, moves: Tensor) -> Tensor:
    """Each row (..., d, d) moved along itself by (..., d) pixels."""
    k = torch.fft.rfftfreq(lines.shape[-1], dtype=lines.dtype, device=lines.device)
    angle = -2 * math.pi * moves[..., None] * k
    return torch.fft.irfft(torch.fft.rfft(lines) * torch.polar(torch.ones_like(angle), angle), n=lines.shape[-1])


def _with_lines_moved(frames: Tensor, moves: Tensor, quarter_turns: Tensor) -> Tensor:
    return torch.stack(
        [
            torch.rot90(_moved_lines(torch.rot90(f, q), m), -q)
            for f, m, q in zip(frames, moves, quarter_turns.tolist(), strict=True)
        ]
    )


def _line_moves(frames: Tensor, quarter_turns: Tensor) -> Tensor:
    """(k, d) pixels by which each line is to be moved along itself to fit the mean of the other frames.

    A Gauss-Newton step for each line, shrunk by what noise alone makes lines differ: one that shows nothing stays.
    """
    found, share = [], 1 - 1 / len(frames)  # the others move, too
    for number, (frame, q) in enumerate(zip(frames, quarter_turns.tolist(), strict=True)):
        others = torch.cat((frames[:number], frames[number + 1 :])).mean(0)
        lines, reference = torch.rot90(frame, q), _smooth_lines(torch.rot90(others, q))
        k = 2j * math.pi * torch.fft.rfftfreq(lines.shape[-1], dtype=lines.dtype, device=lines.device)
        slope = torch.fft.irfft(torch.fft.rfft(reference) * k, n=lines.shape[-1])
        rest = lines - reference
        power = slope.square().sum(1).clamp(min=1e-30)
        # a line that lies m off shows reference(x - m): the rest is - m slope, and the line is to be moved by -m
        measured = (rest * slope).sum(1) / power
        noise = rest.square().mean(1) / power
        seen = power > 0.1 * power.max()
        spread = (measured[seen].square() - noise[seen]).mean().clamp(min=0)
        shrunk = share * measured * spread / (spread + noise)
        found.append(shrunk.clamp(-_LARGEST, _LARGEST))
    moves = torch.stack(found)
    return moves - moves.mean(1, keepdim=True)


def _smooth_lines(lines: Tensor, sigma: float = 1.0) -> Tensor:
    """Rows (..., d) without what no line shows above its noise: a Gaussian along the line, pixels rms."""
    k = torch.fft.rfftfreq(lines.shape[-1], dtype=lines.dtype, device=lines.device)
    return torch.fft.irfft(torch.fft.rfft(lines) * torch.exp(-2 * (math.pi * sigma * k) ** 2), n=lines.shape[-1])
