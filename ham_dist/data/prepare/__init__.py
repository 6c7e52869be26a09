"""Preparing data: raw files to Parquet shards and a manifest."""
