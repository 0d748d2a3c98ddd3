"""Migrations: of records between state stores, and of directories of tusd."""
