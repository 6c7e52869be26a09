"""HAM: how many columns does each embedding table of a CTR model need? Found in sharded TorchRec tables.

Shape letters, the same in every file:
    B    rows of a batch (on this rank, unless a text says "global")
    F    fields
    C_j  rows (num_embeddings) of the table of field j; row 0 stands for unknown values
    d_j  width (columns) of the table of field j
    D    sum of d_j over the fields
    S    columns under search; S = D of the supernet
    W    ranks (world size)

Nothing here imports torch: `import ham_dist` and `ham-dist --help` stay fast.
"""

__version__ = "0.1.0"
