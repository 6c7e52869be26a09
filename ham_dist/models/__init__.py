"""CTR models.

An interaction maps the columns of all fields to a logit. It is plain torch, so that serving needs no
TorchRec; `ctr` combines an interaction with masked TorchRec tables.
"""
