"""Locks between the processes of one host."""
