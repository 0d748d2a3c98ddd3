"""Sinks of events: HTTP endpoints and message brokers. Each broker needs the client library of its extra."""
