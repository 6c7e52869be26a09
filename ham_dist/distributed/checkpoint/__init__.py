"""Sharded checkpoints that load on any number of ranks and under any plan."""
