"""Serving a bundle: raw records to ids, without DuckDB, TorchRec or a process group."""

from ham_dist.serving.encoder import RecordEncoder

__all__ = ["RecordEncoder"]
