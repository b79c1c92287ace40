"""Cost and accuracy, measured."""
