"""Videos as a source and a sink: planned, decoded, converted to RGB and back, and encoded."""
