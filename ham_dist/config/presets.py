"""Values of `data.synthetic.preset`: generated data with table sizes of well-known data sets."""

from typing import Any

DLRM_CARDINALITIES = (
    40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956, 405_282, 10,
    2_209, 11_938, 155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152, 12_973, 108, 36,
)  # fmt: skip
"""Rows of the 26 tables of the public DLRM benchmark on Criteo 1TB, at most 40 million each; 204,184,588 in
total.

Source: MLCommons training reference, recommendation_v2 (torchrec_dlrm), --num_embeddings_per_feature.
"""

NUMERIC_CARDINALITIES = (64, 128, 128, 64, 256, 192, 128, 64, 128, 16, 48, 32, 96)
"""Rows of 13 fields that stand for Criteo's integer columns after floor(ln(z)^2). They are made up, of the
size that counts up to 10^3 .. 10^6 would give."""

_DLRM_RANKS = (8, 4, 4, 3, 4, 1, 3, 2, 2, 8, 6, 5, 1, 3, 4, 2, 1, 2, 1, 6, 6, 4, 5, 0, 0, 0)
_NUMERIC_RANKS = (3, 2, 2, 1, 3, 2, 1, 1, 2, 1, 1, 0, 0)

PRESETS: dict[str, dict[str, Any]] = {
    "dlrm": {"num_embeddings": DLRM_CARDINALITIES, "planted_ranks": _DLRM_RANKS, "skew": 1.05},
    "dlrm-39": {
        "num_embeddings": NUMERIC_CARDINALITIES + DLRM_CARDINALITIES,
        "planted_ranks": _NUMERIC_RANKS + _DLRM_RANKS,
        "skew": 1.05,
    },
}
"""The num_embeddings are those of the benchmark. Ranks and skew are made up: larger tables need more columns,
and a few fields are noise."""
