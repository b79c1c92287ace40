"""What a transformer block costs, whatever its widths are: the term that the formulas of all siblings are sums of.

A multiply-add counts as two operations. Norms, biases, activations and softmax are left out.
"""

from perceiver_vl.layers.attention import absorbing_pays


def block_flops(
    queries: int,
    inputs: int,
    hidden_size: int,
    *,
    input_size: int | None = None,
    qk_size: int | None = None,
    v_size: int | None = None,
    intermediate_size: int | None = None,
    gated_mlp: bool = False,
    absorbing_heads: int | None = None,
) -> int:
    """An `AttentionBlock` of these widths (None: as it takes them) in which `queries` tokens attend to `inputs`
    tokens; a self-attention has as many of both. `absorbing_heads`: the heads of one that is called with `absorb`, and
    then does what takes fewer operations.
    """
    input_size, qk_size, v_size = input_size or hidden_size, qk_size or hidden_size, v_size or hidden_size
    intermediate_size = 4 * hidden_size if intermediate_size is None else intermediate_size
    own = qk_size + v_size
    attention = own * (queries * hidden_size + inputs * input_size + queries * inputs)
    if absorbing_heads and absorbing_pays(queries, inputs, input_size, own, absorbing_heads):
        attention = queries * (own * (hidden_size + input_size) + 2 * absorbing_heads * inputs * input_size)
    elif absorbing_heads == 1 and 2 * hidden_size <= own:
        in_their_width = inputs * (own * (input_size + hidden_size) + 2 * queries * hidden_size)
        attention = min(attention, in_their_width)
    return 2 * (attention + (3 if gated_mlp else 2) * queries * hidden_size * intermediate_size)
