"""Backends in the memory of one process, for tests and examples: everything is lost with the process."""
