"""Code that deals with ranks; the only package that imports torch.distributed or torchrec.distributed."""
