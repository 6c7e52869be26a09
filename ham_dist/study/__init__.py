"""Studies: grids of runs over data, models, seeds, methods and targets, with one line of results per run."""
