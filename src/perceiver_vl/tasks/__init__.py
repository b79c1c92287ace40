"""One file a task: its examples, its query, its loss, its metric."""
