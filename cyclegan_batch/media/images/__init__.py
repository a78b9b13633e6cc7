"""Image files as a source and a sink: their headers, their codec, and shards of them."""
