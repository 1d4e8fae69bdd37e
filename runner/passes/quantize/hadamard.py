"""Orthogonal matrices that spread a vector over all of its coordinates.

Hadamard matrices are built by Paley's two constructions (R. Paley: On orthogonal matrices, 1933) and Sylvester's doubling.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Mode = Literal["hadamard", "random"]


def rotation(size: int, mode: Mode, generator: torch.Generator) -> torch.Tensor:
    """Returns a random orthogonal matrix, float64 [size, size].

    Args:
        size: its rows.
        mode: ``hadamard`` a Hadamard matrix with rows of random sign, or what ``random`` gives where none of that size is
            known; ``random`` uniform among all orthogonal ones.
        generator: where the randomness comes from.
    """
    import torch

    matrix = hadamard(size) if mode == "hadamard" else None
    if matrix is not None:
        signs = torch.randint(0, 2, (size, 1), generator=generator).double().mul_(2).sub_(1)
        return signs * matrix / math.sqrt(size)
    gaussian = torch.randn(size, size, generator=generator, dtype=torch.float64)
    orthogonal, upper = torch.linalg.qr(gaussian)
    return orthogonal * upper.diagonal().sign()


def hadamard(size: int) -> torch.Tensor | None:
    """Returns a matrix of ones and minus ones with orthogonal rows, float64 [size, size]; None where none is found."""
    import torch

    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if size % 2 == 0 and (half := hadamard(size // 2)) is not None:
        return torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), half)
    if size % 4:
        return None
    if _is_prime(size - 1):
        return _paley_1(size - 1)
    if _is_prime(size // 2 - 1) and (size // 2 - 1) % 4 == 1:
        return _paley_2(size // 2 - 1)
    return None


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _bordered_residues(prime: int, below: float) -> torch.Tensor:
    """Returns the quadratic characters of differences, [prime + 1, prime + 1], with ones above and `below` to the left."""
    import torch

    character = torch.full((prime,), -1.0, dtype=torch.float64)
    character[[at * at % prime for at in range(prime)]] = 1
    character[0] = 0
    places = torch.arange(prime)
    bordered = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    bordered[0, 1:] = 1
    bordered[1:, 0] = below
    bordered[1:, 1:] = character[(places[:, None] - places) % prime]
    return bordered


def _paley_1(prime: int) -> torch.Tensor:
    """Returns a Hadamard matrix of order prime + 1, for a prime that leaves 3 when divided by 4."""
    import torch

    return torch.eye(prime + 1, dtype=torch.float64) + _bordered_residues(prime, -1)


def _paley_2(prime: int) -> torch.Tensor:
    """Returns a Hadamard matrix of order 2 (prime + 1), for a prime that leaves 1 when divided by 4."""
    import torch

    ones = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(_bordered_residues(prime, 1), ones) + torch.kron(torch.eye(prime + 1, dtype=torch.float64), diagonal)
