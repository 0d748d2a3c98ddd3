"""Measures this server against a raw floor and against other tus servers on the same machine: `python -m bench`."""
