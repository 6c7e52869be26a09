"""Ways to compute a bundle's probabilities on CPU: `eager` by torch, `aot` by compiled code."""
