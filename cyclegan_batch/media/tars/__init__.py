"""Tars in the WebDataset convention as sources and sinks, read and written as streams."""
