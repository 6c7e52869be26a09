"""The entries of sizes.json: the size of each table before and after the search."""

from collections.abc import Sequence

from ham_dist.embedding.mask import Columns
from ham_dist.embedding.table_size import TableSize
from ham_dist.embedding.tables import Table


def table_sizes(before: Sequence[Table], after: Sequence[Table], columns: Columns) -> list[TableSize]:
    """Returns the sizes of all tables of the supernet, including the tables that were removed.

    Args:
        before: Tables of the supernet.
        after: Tables of the sliced model.
        columns: Kept columns of every table of the supernet.
    """
    stored = {table.field: table.stored_dim for table in after}
    return [
        TableSize(
            field=table.field,
            num_embeddings=table.num_embeddings,
            base_dim=table.embedding_dim,
            kept_columns=columns[table.field].tolist(),
            searched_dim=len(columns[table.field]),
            stored_dim=stored.get(table.field, 0),
            bytes_before=table.num_embeddings * table.embedding_dim * table.number_bytes,
            bytes_after=table.num_embeddings * len(columns[table.field]) * table.number_bytes,
        )
        for table in before
    ]
