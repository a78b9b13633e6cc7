"""Animated images, GIF, APNG and animated WebP: their structure, their frames, and their files."""
