"""The prepared data on disk: manifest, Parquet shards and their folder."""
