"""The query engines that encode data: DuckDB on one machine, Spark on many."""
