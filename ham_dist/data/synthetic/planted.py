"""Ground truth of generated data: the fields that matter, and the number of columns that each of them needs.

Field j has a latent matrix U_j with r_j columns, where r_j is the planted rank. The true logit of a sample is
    sum over pairs j < k of <P_j u_j, P_k u_k>,
where u_j is the row of U_j for the sample's value, and P_j (L x r_j) has orthonormal columns. Over the
distribution of the values, the columns of U_j have mean 0, variance 1 and no correlation, so all r_j of them
are needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from ham_dist.config.synthetic import SyntheticSettings
from ham_dist.data.format.manifest import SPLITS
from ham_dist.data.synthetic.zipf import Zipf
from ham_dist.errors import DataError

Array = np.ndarray[Any, Any]

# Rows drawn at once. Each chunk has its own random stream, so it can be generated without earlier chunks.
CHUNK = 50_000
# Maximum number of rows of U_j. In a field with more values, values a multiple of LATENTS apart share a row,
# so that the truth of 40 million values fits in memory. Such a field is drawn by rejection, other fields from
# a table of probabilities.
LATENTS = 4096
# Subtracted from the true logit, so that clicks are the rarer label.
OFFSET = 1.0
# Number of random draws of the P_j; the most even one is used.
_DRAWS = 200
_LEAST_ROWS = 1000
# Numbers of random streams, different from those of the splits.
_TRUTH_STREAM, _MISSING_STREAM = 1000, 1001


@dataclass(frozen=True)
class Planted:
    """The ground truth of a generated data set; determined by the settings alone."""

    settings: SyntheticSettings

    @cached_property
    def names(self) -> list[str]:
        """Names of the F fields: field_0, field_1, ..."""
        return [f"field_{number}" for number in range(len(self.settings.planted_ranks))]

    @cached_property
    def zipfs(self) -> list[Zipf]:
        """Distribution of the values 1 .. C_j - 1 of each field; most frequent first, as in prepared data."""
        return [Zipf.over(rows - 1, self.settings.skew) for rows in self.settings.num_embeddings]

    @cached_property
    def distributions(self) -> list[Array]:
        """Probability of each row of U_j: of its value in 1 .. C_j - 1, or of all values that share it."""
        known: dict[int, Array] = {}  # A preset has five fields of 40 million values.
        for zipf in self.zipfs:
            if int(zipf.counts) not in known:
                known[int(zipf.counts)] = zipf.chances(LATENTS)
        return [known[int(zipf.counts)] for zipf in self.zipfs]

    @cached_property
    def vectors(self) -> list[Array]:
        """V_j = U_j P_j' of each field, (1 + rows of U_j, L), where L = max r_j and row 0 is zero.

        Scaled so that the true logit of samples without missing values has the standard deviation `signal`.
        """
        random = _random(self.settings.seed, _TRUTH_STREAM)
        latents = [
            _latent(random, chance, rank)
            for chance, rank in zip(self.distributions, self.settings.planted_ranks, strict=True)
        ]
        frames = _frames(random, self.settings.planted_ranks)
        # u_j and u_k are independent with unit covariance, so <P_j u_j, P_k u_k> has variance |P_j' P_k|^2,
        # and different pairs are uncorrelated.
        variance = sum(float(((a.T @ b) ** 2).sum()) for a, b in combinations(frames, 2))
        scale = (self.settings.signal**2 / variance) ** 0.25
        return [
            np.vstack([np.zeros((1, frame.shape[0])), scale * latent @ frame.T])
            for latent, frame in zip(latents, frames, strict=True)
        ]

    def true_logits(self, ids: Array) -> Array:
        """True log odds of a click.

        Args:
            ids: (F, n).
        Returns:
            (n,) float64.
        """
        total = np.zeros((ids.shape[1], self.vectors[0].shape[1]))
        squares = np.zeros(ids.shape[1])
        for rank, vectors, norms, of_field in zip(
            self.settings.planted_ranks, self.vectors, self._square_norms, ids, strict=True
        ):
            if rank == 0:
                continue
            rows = _latent_rows(of_field) if len(vectors) > LATENTS else of_field
            total += vectors[rows]
            squares += norms[rows]
        # The sum over pairs is (square of the sum - sum of the squares) / 2.
        return ((total**2).sum(1) - squares) / 2 - OFFSET

    def chunk(self, split: str, number: int, rows: int) -> tuple[Array, Array, Array]:
        """Generates chunk `number` of `split`.

        Returns:
            ids (F, rows) int32, labels (rows,) int8 and true logits (rows,) float64.
        """
        stream = self.settings.seed, SPLITS.index(split), number
        random = _random(*stream)
        ids = np.stack([self._draw(random, field, rows) for field in range(len(self.zipfs))]).astype(np.int32)
        if self.settings.missing:
            ids[_random(*stream, _MISSING_STREAM).random(ids.shape) < self.settings.missing] = 0
        logits = self.true_logits(ids)
        labels = random.random(rows) < 1 / (1 + np.exp(-logits))
        return ids, labels.astype(np.int8), logits

    def chunks(self, split: str, rows: int) -> Iterator[tuple[Array, Array, Array]]:
        """Generates the chunks of `split`, which has `rows` rows in total; see `chunk`."""
        for number, first in enumerate(range(0, rows, CHUNK)):
            yield self.chunk(split, number, min(CHUNK, rows - first))

    def check(self) -> None:
        """Checks that samples can show the planted ranks.

        Raises:
            DataError: They cannot. The message names all mistakes.
        """
        ranks, rows = self.settings.planted_ranks, self.settings.num_embeddings
        mistakes = []
        if self.settings.rows < _LEAST_ROWS:
            mistakes.append(
                f"rows = {self.settings.rows}: set at least {_LEAST_ROWS}, so that each split has both labels"
            )
        if sum(rank > 0 for rank in ranks) < 2:
            mistakes.append(
                "planted_ranks: fewer than two fields have a rank above 0;"
                " expected at least two, because the logit is a sum over pairs of fields"
            )
        else:
            for name, rank, count in zip(self.names, ranks, rows, strict=True):
                if rank > sum(ranks) - rank:
                    mistakes.append(
                        f"planted_ranks: {name} has {rank}, but all other fields together only"
                        f" {sum(ranks) - rank}; expected at most as many as the others"
                    )
                if rank > count - 2:
                    mistakes.append(
                        f"num_embeddings: {name} has {count}; planted rank {rank} needs at least {rank + 2}"
                    )
        if mistakes:
            raise DataError("\n".join(f"synthetic.{mistake}" for mistake in mistakes))

    @cached_property
    def _square_norms(self) -> list[Array]:
        return [(vectors**2).sum(1) for vectors in self.vectors]

    @cached_property
    def _cumulative(self) -> list[Array | None]:
        """Cumulative probabilities of each field's values; None if it has too many values."""
        pairs = zip(self.zipfs, self.distributions, strict=True)
        return [np.cumsum(chance) if zipf.counts <= LATENTS else None for zipf, chance in pairs]

    def _draw(self, random: np.random.Generator, field: int, rows: int) -> Array:
        """(rows,) values of `field`."""
        cumulative = self._cumulative[field]
        if cumulative is None:
            return self.zipfs[field].draw(lambda places: random.random(len(places)), rows)
        drawn = np.searchsorted(cumulative, random.random(rows), side="right")
        return 1 + np.minimum(drawn, len(cumulative) - 1)


def auc(labels: Array, scores: Array) -> float | None:
    """AUC: probability that a random positive scores above a random negative; a tie counts one half.

    Returns:
        The AUC; None without positives or without negatives.
    """
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # Ranks from 1, the mean rank for ties.
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return None
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _random(seed: int, *stream: int) -> np.random.Generator:
    """Counter-based generator: different `stream` numbers give independent streams; negative seeds wrap."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed % 2**64, *stream])))


def _latent_rows(ids: Array) -> Array:
    return np.where(ids > 0, (ids - 1) % LATENTS + 1, 0)


def _latent(random: np.random.Generator, chance: Array, rank: int) -> Array:
    """(values, rank): columns of mean 0, variance 1, no correlation if value i has probability chance[i]."""
    latent = random.standard_normal((len(chance), rank))
    latent -= chance @ latent
    covariance = latent.T @ (chance[:, None] * latent)
    return latent @ np.linalg.inv(np.linalg.cholesky(covariance)).T if rank else latent


def _frames(random: np.random.Generator, ranks: tuple[int, ...]) -> list[Array]:
    """The P_j, (L, r_j) each: the random draw with the greatest `evenness` of many."""
    length = max(ranks)
    draws = (
        [np.linalg.qr(random.standard_normal((length, length)))[0][:, :rank] for rank in ranks]
        for _ in range(_DRAWS)
    )
    return max(draws, key=evenness)


def evenness(frames: list[Array]) -> float:
    """Evenness of the fields' directions, from 0 to 1.

    For each field: the variance of the logit due to its weakest direction, divided by the mean over its
    directions. Returns the minimum over the fields.

    Args:
        frames: The P_j, (L, r_j) each.
    """
    least = 1.0
    everything = sum(frame @ frame.T for frame in frames)
    for frame in frames:
        if frame.shape[1]:
            # sum over k != j of (P_j' P_k)(P_j' P_k)'
            shares = np.linalg.eigvalsh(frame.T @ (everything - frame @ frame.T) @ frame)
            least = min(least, float(shares[0] / shares.mean()))
    return least
