"""What a transcription costs, from the configuration alone: O(T·K·F) for the reads, O(T·K²) within frames and O(K·T²)
through time.

`tests/models/perceiver_tf/test_perceiver_tf.py` holds this against the operations counted on built models.
"""

from perceiver_vl.models.block_flops import block_flops
from perceiver_vl.models.perceiver_tf.configuration import PerceiverTFConfig


def forward_flops(config: PerceiverTFConfig, frames: int, *, transcribing: bool = True) -> int:
    """One spectrogram of so many frames; `transcribing`: the answers, too. A multiply-add counts as two operations."""
    width, latents, inner = config.hidden_size, config.num_latents, config.intermediate_ratio * config.hidden_size

    def attention(queries: int, keys: int, input_size: int | None = None) -> int:
        sizes = {"input_size": input_size, "qk_size": config.attention_size, "v_size": config.value_size}
        return block_flops(queries, keys, width, intermediate_size=0, gated_mlp=False, **sizes)  # type: ignore[arg-type]

    keys = config.num_frequencies if config.read == "frequencies" else config.conv_channels
    read = attention(latents, keys, config.feature_size)
    feed_forward = 2 * 2 * width * inner
    if config.feed_forward == "experts":  # two of them, of three maps each, and a router
        chosen = min(2, config.num_experts)
        feed_forward = 2 * (3 * chosen * width * inner + config.num_experts * width)
    local = frames * (attention(latents, latents) + latents * feed_forward)
    temporal = latents * (attention(frames, frames) + frames * feed_forward)
    blocks = frames * read + config.num_local_layers * local + config.num_temporal_layers * temporal
    total = _front_end(config, frames) + config.num_blocks * blocks
    if transcribing:
        asked = len(config.instruments)
        total += frames * block_flops(asked, latents, width, intermediate_size=inner)
        total += 2 * frames * asked * width * 2 * config.num_pitches
    return total


def _front_end(config: PerceiverTFConfig, frames: int) -> int:
    total, before, bins = 0, 1, config.num_bins
    for _ in range(config.num_conv_blocks):
        after = config.conv_channels
        shortcut = 0 if before == after else before
        total += 2 * frames * bins * after * (9 * before + 9 * after + shortcut)
        before, bins = after, bins // 2
    return total
