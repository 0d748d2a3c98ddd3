"""Records, errors, clocks and metadata of uploads; no I/O."""
