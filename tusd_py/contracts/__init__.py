"""The contracts of storages, state stores and lockers. Public: they follow semantic versioning.

A class implements a contract by having its methods; no base class is needed. `docs/extending.md` is the guide.
"""
