"""Size-search methods, which choose the columns to keep: one file per method, one interface, `Method`."""
