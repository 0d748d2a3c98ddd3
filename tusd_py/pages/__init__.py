"""The pages of `tusd-py serve`: static files of this package, which any browser on the same origin may load."""
