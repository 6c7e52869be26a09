"""Bundles: exported models for serving.

`bundle` opens a bundle, `compact` has its model, and `scorer` computes probabilities of records; none of them
needs TorchRec. `writer` writes a bundle from all ranks, and `verify` compares it with the live model.
"""
