"""Models: Perceiver-VL in `perceiver_vl/`, and what serves every model: budgets, loading, quantization."""
