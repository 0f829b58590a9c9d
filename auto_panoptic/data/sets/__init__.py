"""The public data sets: where their files lie, how they are registered and read."""
