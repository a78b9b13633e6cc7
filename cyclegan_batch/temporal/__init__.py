"""Translated videos over time: the filter against flicker, and the optical flow that it follows."""
