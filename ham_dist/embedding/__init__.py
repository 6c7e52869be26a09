"""Embedding tables, masks over their columns, orthogonality and slicing, on one process (no ranks)."""
