"""The sections of benchmarks/gpu.py, one module each, whose ``jobs(bench)`` yields its rows.

A job is a name and a function that returns the row's values; the most important come first. The
top of each module states what its numbers decide.
"""
