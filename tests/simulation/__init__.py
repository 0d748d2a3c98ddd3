"""Deterministic simulation: the whole server in one thread, on virtual time, over simulated disks, from one seed.

`docs/testing.md` is the guide. Run `make simulate`, or `python -m tests.simulation --seed 17`.
"""
