"""Reading prepared data: each rank's part of the global batches."""
