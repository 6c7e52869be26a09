"""Sharded checkpoints that can be loaded on any number of ranks and with any plan."""
