"""What an answer costs, from the configuration alone.

`tests/models/gcog/test_gcog_models.py` holds this against the operations counted on built models. Recurrent nets are
counted as the steps of their cells.
"""

from perceiver_vl.models.block_flops import block_flops
from perceiver_vl.models.gcog.configuration import GCOGConfig


def forward_flops(config: GCOGConfig, instruction_length: int) -> int:
    """One answer to an instruction of so many tokens; a multiply-add counts as two operations."""
    width, rules, stimuli = config.hidden_size, instruction_length, config.stimulus_length
    inputs = config.instruction_size + config.stimulus_size
    answer = 2 * width * config.num_labels
    if config.architecture in ("rnn", "gru"):
        gates = 1 if config.architecture == "rnn" else 3
        whole = config.instruction_size + stimuli * config.stimulus_size
        return answer + 2 * rules * gates * width * (whole + width)
    if config.architecture == "single_stream":
        layers = [inputs, *[width] * (config.num_hidden_layers - 1)]
        blocks = sum(_encoder(config, rules + stimuli, size) for size in layers)
        return answer + blocks + 2 * width * width * 5
    answer += _encoder(config, rules, config.instruction_size) + _encoder(config, stimuli, config.stimulus_size)
    if config.architecture == "double_stream":
        return answer + 2 * width * width * (2 + 2 + 4 + 2)
    latents = 1 if config.architecture == "cross_attention" else config.num_latents
    reads = sum(block_flops(latents, inputs, width, intermediate_size=0) for inputs in (rules, stimuli))
    if config.architecture == "cross_attention":
        return answer + reads
    own = 2 * block_flops(latents, latents, width, intermediate_size=0)
    return answer + reads + own + 3 * 2 * latents * width * width


def _encoder(config: GCOGConfig, tokens: int, token_size: int) -> int:
    block = block_flops(tokens, tokens, config.hidden_size, intermediate_size=config.hidden_size)
    return 2 * tokens * token_size * config.hidden_size + block
