"""The administration API and the commands about uploads."""
