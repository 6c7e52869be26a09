"""What a run is: its settings (schema), how they are read (load), and where its paths lead (paths)."""
