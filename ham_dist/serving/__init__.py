"""Serving a bundle: raw records to ids and probabilities, without DuckDB, TorchRec or a process group."""

from ham_dist.serving.encoder import RecordEncoder
from ham_dist.serving.scorer import Scorer

__all__ = ["RecordEncoder", "Scorer"]
