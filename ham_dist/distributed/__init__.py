"""Everything that knows of ranks: the only room that imports torch.distributed or torchrec.distributed."""
