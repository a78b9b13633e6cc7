"""Translated videos over time: flicker measured, and the filter against it."""
