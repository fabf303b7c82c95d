"""HTTP: each file one group of paths, each route a few lines around the pipeline."""
