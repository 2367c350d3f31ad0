from __future__ import annotations

import torch

from common.least_squares import least_squares


def test_every_solution_has_the_same_bits_whatever_the_memory_held() -> None:
    generator = torch.Generator().manual_seed(0)
    design = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    matrix, right = design @ design.T, torch.randn(3, 1, generator=generator, dtype=torch.float64)
    first = least_squares(matrix, right)
    torch.testing.assert_close(matrix @ first, right)
    for k in range(200):
        torch.full((3,), k - 100, dtype=torch.int32)  # leaves numbers where pivots will lie
        assert torch.equal(least_squares(matrix, right), first)


def test_of_many_solutions_the_shortest_is_taken() -> None:
    torch.testing.assert_close(least_squares(torch.ones(4, 2), torch.full((4, 1), 3.0)), torch.full((2, 1), 1.5))
