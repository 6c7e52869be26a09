"""CTR models. An interaction turns the columns of all fields into a logit and is plain torch, so that serving needs no TorchRec;
`ctr` puts one on top of masked TorchRec tables."""
