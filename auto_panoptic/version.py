"""The version of this package, where tools that must not import it can read it."""

__version__ = "0.1.0"
