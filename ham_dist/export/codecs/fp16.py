"""Tables in float16, which keeps 11 bits of each number."""

import torch

from ham_dist.export.codecs.floats import FloatCodec

FP16 = FloatCodec("fp16", torch.float16, tolerance=2e-3)
