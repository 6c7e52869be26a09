"""The model sharded over ranks: lookups, exchanges of ids and rows, and sums over ranks."""
