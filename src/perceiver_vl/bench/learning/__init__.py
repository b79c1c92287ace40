"""Does it learn: Perceiver-VL beside a joint transformer and itself, on the generated world and on real data."""
