"""Tables, masks over their columns, orthogonality, and slicing, on one process: nothing here knows of ranks."""
