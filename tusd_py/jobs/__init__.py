"""Periodic duties of a server."""
