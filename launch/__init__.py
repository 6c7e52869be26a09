"""The torchx component that starts runs, and one TOML file per run."""
