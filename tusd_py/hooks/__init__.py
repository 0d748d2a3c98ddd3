"""Calls of the application: HTTP with signatures."""
