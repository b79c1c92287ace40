"""What a transformer block costs, whatever its widths are: the term that the formulas of all siblings are sums of.

A multiply-add counts as two operations. Norms, biases, activations and softmax are left out.
"""


def block_flops(
    queries: int,
    inputs: int,
    hidden_size: int,
    *,
    input_size: int | None = None,
    qk_size: int | None = None,
    v_size: int | None = None,
    intermediate_size: int | None = None,
) -> int:
    """An `AttentionBlock` of these widths (None: as it takes them) in which `queries` tokens attend to `inputs`
    tokens; a self-attention has as many of both.
    """
    input_size, qk_size, v_size = input_size or hidden_size, qk_size or hidden_size, v_size or hidden_size
    intermediate_size = 4 * hidden_size if intermediate_size is None else intermediate_size
    projections = queries * hidden_size * (qk_size + v_size) + inputs * input_size * (qk_size + v_size)
    attention = queries * inputs * (qk_size + v_size)
    return 2 * (projections + attention + 2 * queries * hidden_size * intermediate_size)
