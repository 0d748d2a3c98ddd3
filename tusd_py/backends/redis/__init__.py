"""Records and locks in Redis, for several hosts."""
