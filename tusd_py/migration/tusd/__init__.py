"""Import of uploads of tusd."""
