"""Measure what a model reaches on this machine, and what limits it."""
