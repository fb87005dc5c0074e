"""Orthogonal matrices that spread every channel over all others.

Rows are channels: a stream of vectors x becomes x Q. Everything is float64.
"""

from typing import Literal

import torch
from scipy.linalg import hadamard as sylvester
from torch import Tensor

Kind = Literal["hadamard", "random"]


def orthogonal(size: int, kind: Kind, generator: torch.Generator, keeps_mean: bool = False) -> Tensor:
    """A seeded orthogonal matrix Q (size, size).

    `hadamard`: D H / √size with random signs D and a Hadamard matrix H, whose every entry is ±1/√size. Where none is
    known for the size, blocks of the largest power of two that divides it stand on the diagonal. `random`: uniform over
    all orthogonal matrices. With `keeps_mean` Q maps the vector of ones to itself, and so keeps every vector's mean
    (and its deviation from it, rotated): Hᵀ D H / size with shuffled columns, or uniform over what is left.
    """
    if kind == "random":
        return _fixing(_uniform(size - 1, generator)) if keeps_mean else _uniform(size, generator)
    base = hadamard(size)
    if base is None:
        width = size & -size
        blocks = [orthogonal(width, kind, generator, keeps_mean) for _ in range(size // width)]
        return _diagonal(*blocks)
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    if not keeps_mean:
        return signs.unsqueeze(1) * base / size**0.5
    signs[0] = 1
    base = base * base[0]  # its first row is all ones, which the others are orthogonal to
    return (base.T @ (signs.unsqueeze(1) * base) / size)[:, torch.randperm(size, generator=generator)]


def hadamard(size: int) -> Tensor | None:
    """A Hadamard matrix (entries ±1, H Hᵀ = size · I) float64, None where no construction here gives one.

    Sylvester's doubling of Paley's matrices: sizes 2^k · m with m = 1, p + 1 for a prime p ≡ 3 (mod 4), such as 12 and
    20, or 2 (p + 1) for a prime p ≡ 1 (mod 4), such as 28 and 36.
    """
    doublings = 1
    while size % doublings == 0:
        base = torch.ones(1, 1, dtype=torch.float64) if size == doublings else _paley(size // doublings)
        if base is not None:
            return torch.kron(torch.from_numpy(sylvester(doublings, dtype=float)), base)
        doublings *= 2
    return None


def _paley(size: int) -> Tensor | None:
    if size % 4 == 0 and _is_prime(size - 1):
        return torch.eye(size, dtype=torch.float64) + _conference(size - 1, -1)
    if size % 4 == 0 and size // 2 % 4 == 2 and _is_prime(size // 2 - 1):
        ones, other = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
        half = torch.eye(size // 2, dtype=torch.float64)
        return torch.kron(_conference(size // 2 - 1, 1), ones.double()) + torch.kron(half, other.double())
    return None


def _conference(prime: int, sign: int) -> Tensor:
    """0 on the diagonal, ±1 elsewhere, rows orthogonal: quadratic residues of i - j, with a border of 1 and `sign`."""
    residues = {number * number % prime for number in range(1, prime)}
    character = torch.tensor([0.0] + [1.0 if number in residues else -1.0 for number in range(1, prime)])
    places = torch.arange(prime)
    matrix = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    matrix[0, 1:], matrix[1:, 0] = 1, sign
    matrix[1:, 1:] = character[(places.unsqueeze(1) - places) % prime]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _uniform(size: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def _fixing(inner: Tensor) -> Tensor:
    """(n + 1, n + 1) from `inner` (n, n): it acts on what is orthogonal to the vector of ones, which stays."""
    size = len(inner) + 1
    axis = torch.full((size,), size**-0.5, dtype=torch.float64)
    axis[0] -= 1
    mirror = torch.eye(size, dtype=torch.float64)
    if size > 1:
        mirror -= 2 * torch.outer(axis, axis) / axis.square().sum()
    return mirror @ _diagonal(torch.ones(1, 1, dtype=torch.float64), inner) @ mirror


def _diagonal(*blocks: Tensor) -> Tensor:
    joined: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return joined
