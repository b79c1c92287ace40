"""Media re-encoded once, for quick training and search."""
