"""Periodic jobs of a server."""
