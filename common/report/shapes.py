"""Shapes of what goes into a report, checked when it is made."""

from __future__ import annotations

from torch import Tensor


def check_shapes(section: str, **tensors: tuple[Tensor | None, tuple[int | None, ...]]) -> None:
    for name, (tensor, expected) in tensors.items():
        if tensor is None:
            continue
        if tensor.ndim != len(expected) or any(e not in (None, s) for s, e in zip(tensor.shape, expected, strict=True)):
            wanted = "(" + ", ".join("n" if e is None else str(e) for e in expected) + ")"
            raise ValueError(f"report, {section}: {name} has shape {tuple(tensor.shape)}, expected {wanted}")
