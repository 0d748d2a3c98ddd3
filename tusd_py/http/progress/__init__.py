"""Live progress over HTTP."""
