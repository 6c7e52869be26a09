"""Reads prepared data as batches: each rank gets its part of the global batches."""
