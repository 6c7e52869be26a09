"""From raw files to batches: recipe, prepare, manifest, reader, batch, and the generated data set."""
