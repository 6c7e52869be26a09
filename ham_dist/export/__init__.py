"""Bundles: what serving gets. `bundle` opens one, `compact` is the model in it, `scorer` gives probabilities of records; none of them needs TorchRec.
`writer` streams one from all ranks, `verify` holds it against the live model."""
