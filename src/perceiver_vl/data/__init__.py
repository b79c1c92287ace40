"""Folders of one's own, the generated world, and batches whose randomness comes from the seed alone."""
