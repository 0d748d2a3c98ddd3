"""Backends in the memory of one process, for tests and examples: all uploads are lost with the process."""
