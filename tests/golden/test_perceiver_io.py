"""The layers hold DeepMind's language Perceiver (Perceiver IO, Jaegle et al. 2022): other widths for latents and
inputs, other head sizes for keys and values, one cross-attention, many self-attentions, a decoder without skip
connection.
"""

import pytest
import torch
from torch import Tensor, nn
from transformers import PerceiverConfig, PerceiverForMaskedLM

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.partial_attention import merge
from perceiver_vl.layers.perceiver import LatentEncoder, QueryDecoder
from tiny import assert_same


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


def copy_layer(block: nn.Module, layer: nn.Module) -> None:
    """Their layer's weights in our block."""
    assert isinstance(block, AttentionBlock)
    assert block.norm2 is not None
    assert block.mlp is not None
    attention = layer.attention.self
    pairs: list[tuple[nn.Module, nn.Module]] = [
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


def ours(model: PerceiverForMaskedLM) -> tuple[LatentEncoder, QueryDecoder]:
    """Encoder and decoder of the same weights."""
    config, theirs = model.config, model.perceiver.encoder
    encoder = LatentEncoder(
        config.d_latents,
        config.num_self_attention_heads,
        num_latents=config.num_latents,
        self_attentions_per_block=len(theirs.self_attends),
        input_size=config.d_model,
        intermediate_size=config.d_latents,
        qk_size=config.qk_channels,
        v_size=config.v_channels,
        cross_attention={"norm_inputs": True},
        final_norm=False,
    ).double()
    assert encoder.latents is not None
    encoder.latents.data.copy_(model.perceiver.embeddings.latents)
    block = encoder.blocks[0]
    copy_layer(block.cross_attention, theirs.cross_attention)
    for self_attention, layer in zip(block.self_attentions, theirs.self_attends, strict=True):
        copy_layer(self_attention, layer)
    decoding = model.perceiver.decoder.decoding_cross_attention
    decoder = QueryDecoder(
        config.d_model,
        decoding.attention.self.num_heads,
        num_queries=config.max_position_embeddings,
        input_size=config.d_latents,
        intermediate_size=config.d_model,
        qk_size=decoding.attention.self.qk_channels,
        v_size=decoding.attention.self.v_channels,
        norm_inputs=True,
        residual="none",
        final_norm=False,
    ).double()
    copy_layer(decoder.block, decoding)
    assert decoder.queries is not None
    decoder.queries.data.copy_(model.perceiver.decoder.output_position_encodings(1)[0])
    return encoder, decoder


def test_the_language_perceiver_of_our_layers(theirs: PerceiverForMaskedLM) -> None:
    draw = torch.Generator().manual_seed(1)
    input_ids = torch.randint(50, (3, 11), generator=draw)
    attention_mask = torch.ones(3, 11, dtype=torch.long)
    attention_mask[1, 6:] = 0
    encoder, decoder = ours(theirs)
    embeddings = theirs.perceiver.input_preprocessor
    with torch.no_grad():
        wanted = theirs(input_ids, attention_mask=attention_mask).logits
        tokens: Tensor = embeddings.embeddings(input_ids) + embeddings.position_embeddings.weight
        answers = decoder(encoder(tokens, attention_mask.bool()))
        found = answers @ embeddings.embeddings.weight.T + theirs.embedding_decoder.bias
    assert_same(found, wanted)
    assert wanted.std() > 0.1


def test_partial_attention_holds_there_too(theirs: PerceiverForMaskedLM) -> None:
    """What is attended to in two parts is what is attended to whole, at these sizes and with normed inputs."""
    encoder, decoder = ours(theirs)
    draw = torch.Generator().manual_seed(2)
    cross = encoder.blocks[0].cross_attention
    assert isinstance(cross, AttentionBlock)
    for block, queries, width in ((cross, torch.randn(2, 7, 48), 24), (decoder.block, torch.randn(2, 5, 24), 48)):
        inputs, queries = torch.randn(2, 9, width, generator=draw).double(), queries.double()
        parts = merge(block.partial_attention(queries, inputs[:, :4]), block.partial_attention(queries, inputs[:, 4:]))
        with torch.no_grad():
            assert_same(block.from_partial_attention(queries, parts), block(queries, inputs))
            assert_same(block.forward_parts(queries, [inputs[:, :4], (inputs[:, 4:], None)]), block(queries, inputs))
