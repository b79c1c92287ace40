"""The public benchmarks, read from their official files as these are: one small reader a format."""
