"""What models are built of. Layers take plain arguments, no configuration."""
