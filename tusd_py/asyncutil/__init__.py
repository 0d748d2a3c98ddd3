"""Helpers for event loops: threads, serial tasks, groups of calls, limits of bytes, sets with a time to live."""
