"""Media transcoded once, for quick training and search."""
