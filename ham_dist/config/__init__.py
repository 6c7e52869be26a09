"""Settings of a run: the schema (schema.py), reading and writing TOML (load.py), older versions
(migrate.py)."""
