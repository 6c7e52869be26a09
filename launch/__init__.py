"""How runs are launched: the torchx component, and one TOML file a run."""
