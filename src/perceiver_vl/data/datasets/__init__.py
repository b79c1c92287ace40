"""The public benchmarks, read from their official files as these are: one small reader a format."""

from perceiver_vl.data.datasets.read import read_benchmark, read_splits
from perceiver_vl.data.datasets.table import BENCHMARKS, Benchmark, Split

__all__ = ["BENCHMARKS", "Benchmark", "Split", "read_benchmark", "read_splits"]
