"""HAM: finds how many columns each embedding table of a CTR model needs, in sharded TorchRec tables.

Shape letters, the same in every file:
    B    samples of a batch (on this rank, unless stated as "global")
    F    fields
    C_j  rows (num_embeddings) of the table of field j; row 0 stands for unknown values
    d_j  embedding dim (number of columns) of the table of field j
    D    sum of d_j over the fields
    S    columns that are searched; S = D of the supernet
    W    world size (number of ranks)

Nothing here imports torch, so that `import ham_dist` and `ham-dist --help` are fast.
"""

__version__ = "0.1.0"
