"""Delivery of stored events to sinks: webhooks and message brokers."""
