"""Events of uploads, and their way to observers and subscribers."""
