"""The same attention blocks hold DeepMind's language Perceiver (Perceiver IO, Jaegle et al. 2022): other widths for
latents and inputs, other head sizes for keys and values, one cross-attention, many self-attentions, a decoder without
skip connection.
"""

import pytest
import torch
from torch import Tensor, nn
from transformers import PerceiverConfig, PerceiverForMaskedLM

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.partial_attention import merge
from tiny import assert_same

EPS = 1e-5


@pytest.fixture
def theirs() -> PerceiverForMaskedLM:
    """The language Perceiver in small: 26 self-attentions, and no two sizes equal that need not be."""
    config = PerceiverConfig(
        num_latents=7,
        d_latents=48,
        d_model=24,
        num_blocks=1,
        num_self_attends_per_block=26,
        num_self_attention_heads=4,
        num_cross_attention_heads=4,
        qk_channels=8,
        v_channels=48,
        self_attention_widening_factor=1,
        cross_attention_widening_factor=1,
        vocab_size=50,
        max_position_embeddings=11,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    model = PerceiverForMaskedLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms are constants otherwise
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def copy_layer(block: AttentionBlock, layer: nn.Module) -> AttentionBlock:
    """Their layer's weights in our block."""
    attention = layer.attention.self
    block.double()
    pairs = [
        (block.norm1, attention.layernorm1),
        (block.attention.q_proj, attention.query),
        (block.attention.k_proj, attention.key),
        (block.attention.v_proj, attention.value),
        (block.attention.out_proj, layer.attention.output.dense),
        (block.norm2, layer.layernorm),
        (block.mlp.fc1, layer.mlp.dense1),
        (block.mlp.fc2, layer.mlp.dense2),
    ]
    if isinstance(attention.layernorm2, nn.LayerNorm):
        pairs.append((block.input_norm, attention.layernorm2))
    for ours, source in pairs:
        ours.load_state_dict(source.state_dict())
    return block


def ours(model: PerceiverForMaskedLM) -> tuple[AttentionBlock, list[AttentionBlock], AttentionBlock]:
    """The read, the self-attentions and the decoder's read."""
    config, encoder = model.config, model.perceiver.encoder
    latents, inputs, heads = config.d_latents, config.d_model, config.num_cross_attention_heads
    sizes = {"qk_size": config.qk_channels, "v_size": config.v_channels}
    read = AttentionBlock(latents, heads, latents, EPS, input_size=inputs, norm_inputs=True, **sizes)
    self_attentions = [AttentionBlock(latents, heads, latents, EPS, **sizes) for _ in encoder.self_attends]
    decoding = model.perceiver.decoder.decoding_cross_attention
    channels = {
        "qk_size": decoding.attention.self.qk_channels,
        "v_size": decoding.attention.self.v_channels,
        "input_size": latents,
    }
    heads = decoding.attention.self.num_heads
    ask = AttentionBlock(inputs, heads, inputs, EPS, norm_inputs=True, residual="none", **channels)
    return (
        copy_layer(read, encoder.cross_attention),
        [
            copy_layer(self_attention, layer)
            for self_attention, layer in zip(self_attentions, encoder.self_attends, strict=True)
        ],
        copy_layer(ask, decoding),
    )


def test_the_language_perceiver_in_our_blocks(theirs: PerceiverForMaskedLM) -> None:
    draw = torch.Generator().manual_seed(1)
    input_ids = torch.randint(50, (3, 11), generator=draw)
    attention_mask = torch.ones(3, 11, dtype=torch.long)
    attention_mask[1, 6:] = 0
    with torch.no_grad():
        wanted = theirs(input_ids, attention_mask=attention_mask).logits
        found = logits(theirs, input_ids, attention_mask.bool())
    assert_same(found, wanted)
    assert wanted.std() > 0.1


def logits(model: PerceiverForMaskedLM, input_ids: Tensor, input_mask: Tensor) -> Tensor:
    """Their tables, our blocks: `(B,L)` → `(B,L,V)`."""
    read, self_attentions, ask = ours(model)
    embeddings = model.perceiver.input_preprocessor
    tokens = embeddings.embeddings(input_ids) + embeddings.position_embeddings.weight[: input_ids.shape[1]]
    latents = read(model.perceiver.embeddings.latents.expand(len(input_ids), -1, -1), tokens, input_mask)
    for self_attention in self_attentions:
        latents = self_attention(latents)
    queries = model.perceiver.decoder.output_position_encodings(len(input_ids))
    answers = ask(queries, latents)
    return answers @ embeddings.embeddings.weight.T + model.embedding_decoder.bias


def test_attention_summaries_hold_there_too(theirs: PerceiverForMaskedLM) -> None:
    """A read in two parts is the read of the whole, at these sizes and with normed inputs."""
    read, _, ask = ours(theirs)
    draw = torch.Generator().manual_seed(2)
    for block, queries, width in ((read, torch.randn(2, 7, 48, generator=draw), 24), (ask, torch.randn(2, 5, 24), 48)):
        inputs, queries = torch.randn(2, 9, width, generator=draw).double(), queries.double()
        parts = merge(block.partial_attention(queries, inputs[:, :4]), block.partial_attention(queries, inputs[:, 4:]))
        with torch.no_grad():
            assert_same(block.from_partial_attention(queries, parts), block(queries, inputs))
