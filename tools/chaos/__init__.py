"""Fault drills of the search: real processes, real signals, and counts of what went wrong.

Each drill is a function of a :class:`~chaos.report.Plan` that returns an :class:`~chaos.report.Outcome`.
"""
