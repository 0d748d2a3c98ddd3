"""Helpers for event loops: threads, serial tasks, limits of bytes, and sets with a time to live."""
