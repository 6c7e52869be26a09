"""Soft orthogonality of a table's columns (HAM paper, Eq. 1), in closed form.

V (C, d) is a table and G = V'V (d, d) its Gram matrix. Both forms of the penalty R and their gradients depend
on the rows only through G, and the gradient is V times a (d, d) matrix. So nothing of the table's size is
kept for a backward pass, and a table sharded over ranks needs one all-reduce of d x d numbers.
"""

from typing import Literal

import torch

Form = Literal["gram", "cosine"]

SMALLEST_NORM = 1e-12
"""`cosine` leaves out columns shorter than this: padding and vanished columns have no direction."""


def penalty(gram: torch.Tensor, form: Form, base_dim: int) -> torch.Tensor:
    """Returns R of one table, a scalar.

    Args:
        gram: G, (d, d).
        form: "gram": ||G - I||_F^2 / base_dim^2 (Eq. 1). "cosine": the same for the columns scaled to unit
            length, so that the diagonal adds nothing.
        base_dim: d_j of the paper. A sliced table keeps the divisor of its supernet table, so that retraining
            continues with the objective that the search ended with: divided by its own dim, a table sliced
            from 16 columns to 1 would be pulled to unit length 256 times as hard.
    Source: HAM paper, Eq. 1.
    """
    return _difference(gram, form).square().sum() / base_dim**2


def gradient_matrix(gram: torch.Tensor, form: Form, base_dim: int | torch.Tensor) -> torch.Tensor:
    """Returns the matrix M with dR/dV = V M, where d in the formulas below is base_dim.

    - "gram": M = 4 (G - I) / d^2.
    - "cosine": with N = diag(column norms), C = N^-1 G N^-1 and A = C - I, the gradient at the unit columns
      U = V N^-1 is 4 U A / d^2. The chain rule through u = v / |v| removes its component along u:
      M = 4 N^-1 (A - diag(C A)) N^-1 / d^2.

    Args:
        gram: G, (d, d), or the matrices of T tables, (T, d, d).
        form: As in `penalty`.
        base_dim: A number, or (T, 1, 1).
    Returns:
        M, with the shape of `gram`.
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
    """Returns V - rate V M, damped: column k moves by rate / (1 + rate |M|_k) in place of rate.

    Rows that were not sampled for many steps take all these steps at once, with one large rate. The damping
    leaves small steps as they are, and keeps large ones from going past the minimum.

    Args:
        values: V, (..., rows, d), or some of its columns.
        product: V M, with the shape of `values`.
        matrix: M restricted to these columns, (..., d, columns); M as a whole is symmetric. |M|_k is the sum
            of the absolute values of column k, an upper bound on its pull.
        rate: A number, or one for each number of V.
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
