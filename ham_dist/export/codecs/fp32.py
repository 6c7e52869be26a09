"""Tables in float32: copied unchanged."""

import torch

from ham_dist.export.codecs.floats import FloatCodec

# Only the order of sums differs from the live model's.
FP32 = FloatCodec("fp32", torch.float32, tolerance=1e-6)
