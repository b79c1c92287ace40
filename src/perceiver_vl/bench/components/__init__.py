"""What of the literature is worth having here: each idea alone, and the best few together, at equal cost."""
