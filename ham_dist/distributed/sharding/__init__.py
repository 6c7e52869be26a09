"""The model spread over ranks: lookups, exchanges, and sums over ranks."""
