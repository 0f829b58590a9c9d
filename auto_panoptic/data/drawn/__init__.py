"""The built-in data sets, drawn on first use."""
