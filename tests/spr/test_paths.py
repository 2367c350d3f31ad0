"""Paths: the banded solution is that of the dense least squares, and what is not measured is bridged."""

from __future__ import annotations

import torch

from spr.paths import Movement, solve_path


def test_the_path_is_the_dense_least_squares_solution() -> None:
    g = torch.Generator().manual_seed(1)
    n, lag, step = 30, 3, 0.2
    a = torch.randn(n, 2, generator=g, dtype=torch.float64)
    root = torch.randn(n, 2, 2, generator=g, dtype=torch.float64)
    info = root @ root.mT
    moved = torch.randn(n - lag, 2, generator=g, dtype=torch.float64)
    root = torch.randn(n - lag, 2, 2, generator=g, dtype=torch.float64)
    held = root @ root.mT
    matrix, right = torch.zeros(2 * n, 2 * n, dtype=torch.float64), torch.zeros(2 * n, dtype=torch.float64)

    def add(difference: torch.Tensor, weight: torch.Tensor, value: torch.Tensor) -> None:
        matrix.add_(difference.T @ weight @ difference)
        right.add_(difference.T @ weight @ value)

    eye = torch.eye(2 * n, dtype=torch.float64).view(n, 2, 2 * n)
    for t in range(n):
        add(eye[t], info[t], a[t])
        if t + 1 < n:
            add(eye[t + 1] - eye[t], torch.eye(2, dtype=torch.float64) / step, torch.zeros(2, dtype=torch.float64))
        if t + lag < n:
            add(eye[t + lag] - eye[t], held[t], moved[t])
    path = solve_path(a, info, step, {lag: Movement(moved, held)})
    torch.testing.assert_close(path.positions, torch.linalg.solve(matrix, right).view(n, 2), rtol=1e-6, atol=1e-6)
    blocks = torch.linalg.inv(matrix).view(n, 2, n, 2)
    torch.testing.assert_close(path.covariance, torch.stack([blocks[t, :, t] for t in range(n)]), rtol=1e-6, atol=1e-7)


def test_a_gap_is_bridged_and_its_error_grows() -> None:
    n = 41
    a = torch.arange(n, dtype=torch.float64)[:, None].expand(n, 2).clone()
    info = torch.eye(2, dtype=torch.float64).repeat(n, 1, 1) * 100
    a[10:31], info[10:31] = 1e3, 0.0
    path = solve_path(a, info, 1.0)
    torch.testing.assert_close(path.positions[20], torch.full((2,), 20.0, dtype=torch.float64), rtol=0, atol=0.1)
    assert float(path.covariance[20, 0, 0]) > 20 * float(path.covariance[2, 0, 0])
