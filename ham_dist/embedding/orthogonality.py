"""Soft orthogonality of a table's columns (HAM paper, Eq. 1), in closed form.

    V (C, d) a table, G = V'V (d, d) its Gram matrix

Both forms of R and their gradients depend on the rows only through G, and the gradient is V times a d x d matrix. So nothing of the size of the
table is kept for a backward pass, and tables spread over ranks need one sum over ranks of d x d numbers.
"""

from typing import Literal

import torch

Form = Literal["gram", "cosine"]

SMALLEST_NORM = 1e-12
"""A column shorter than this (padding, or a column that has died) has no direction: `cosine` leaves it out."""


def penalty(gram: torch.Tensor, form: Form, base_dim: int) -> torch.Tensor:
    """R of one table, a scalar.

    gram:       G, (d, d).
    form:       "gram": ||G - I||_F^2 / base_dim^2 (Eq. 1). "cosine": the same of the columns at unit length, so its diagonal counts nothing.
    base_dim: the paper's d_j. A narrow table keeps the divisor of the supernet's, so that retraining goes on with the objective that the search
                ended with: by its own width, a table cut from 16 columns to 1 would be pulled to unit length 256 times as hard.
    """
    return _difference(gram, form).square().sum() / base_dim**2


def gradient_matrix(gram: torch.Tensor, form: Form, base_dim: int | torch.Tensor) -> torch.Tensor:
    """The matrix M with dR/dV = V M; the d that divides below is base_dim.

    "gram":   M = 4 (G - I) / d^2.
    "cosine": with N = diag(column norms), C = N^-1 G N^-1 and A = C - I, the gradient of unit columns U = V N^-1 is 4 U A / d^2, and the way back
              through u = v / |v| takes off its part along u: M = 4 N^-1 (A - diag(C A)) N^-1 / d^2.

    gram:       G (d, d), or those of T tables (T, d, d).
    base_dim: a number, or (T, 1, 1).
    returns:    of the shape of `gram`.
    """
    difference = _difference(gram, form)
    scale = 4.0 / base_dim**2
    if form == "gram":
        return scale * difference
    inverse = _inverse_norms(gram)
    cosines = inverse[..., :, None] * gram * inverse[..., None, :]
    along = (cosines * difference.mT).sum(dim=-1)
    return scale * inverse[..., :, None] * (difference - torch.diag_embed(along)) * inverse[..., None, :]


def damped(
    values: torch.Tensor, product: torch.Tensor, matrix: torch.Tensor, rate: torch.Tensor | float
) -> torch.Tensor:
    """V - rate * V M where that is short, and no farther than is safe where it is long: column k moves by rate / (1 + rate |M|_k).

    Rows that have waited many steps for their turn have a rate of many steps, and may not be thrown past the place that it leads to.

    values:  V (..., rows, d), or some of its columns.
    product: V M, of the same shape.
    matrix:  M, of just these columns (..., d, columns), symmetric in all; |M|_k is the sum of the column's absolute values, a bound on what it pulls.
    rate:    a number, or one for each number of V.
    """
    return values - product * (rate / (1.0 + rate * matrix.abs().sum(dim=-2, keepdim=True)))


def _difference(gram: torch.Tensor, form: Form) -> torch.Tensor:
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    if form == "gram":
        return gram - identity
    inverse = _inverse_norms(gram)
    return (inverse[..., :, None] * gram * inverse[..., None, :]) * (1.0 - identity)


def _inverse_norms(gram: torch.Tensor) -> torch.Tensor:
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0.0).sqrt()
    return torch.where(norms > SMALLEST_NORM, 1.0 / norms.clamp(min=SMALLEST_NORM), 0.0)
