"""The container of a translated video: what it holds is decided, written, and read again."""
