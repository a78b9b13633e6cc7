"""Media files as they are read: opened safely, described, and their packets on one timeline."""
