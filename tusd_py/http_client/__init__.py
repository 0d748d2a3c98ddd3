"""The HTTP client of hooks, event sinks and key endpoints."""
