"""Settings of a run: schema (schema.py), TOML (load.py), settings of older versions (migrate.py)."""
