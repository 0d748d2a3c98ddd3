"""Records in SQLite, for one host."""
