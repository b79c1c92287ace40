"""gCOG's families: their folders, what they cost, what makes latents alike, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from perceiver_vl.models.gcog import ARCHITECTURES, GCOGConfig, GCOGForClassification
from perceiver_vl.models.gcog.flops import forward_flops
from perceiver_vl.utils.errors import UsageError
from tiny import assert_same, differs

SMALL: dict[str, Any] = {"hidden_size": 12, "num_attention_heads": 2, "stimulus_length": 9, "num_labels": 7}
every_family = pytest.mark.parametrize("architecture", ARCHITECTURES)


def small(architecture: str, **changes: Any) -> GCOGForClassification:
    torch.manual_seed(0)
    return GCOGForClassification(GCOGConfig(architecture=architecture, **(SMALL | changes))).double().eval()


def instances(batch: int = 2, rules: int = 4) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    stimuli = torch.randint(0, 5, (batch, 9, 3), generator=draw).double()
    return torch.randint(0, 5, (batch, rules, 8), generator=draw).double(), stimuli


@every_family
@pytest.mark.parametrize("values", [0, 27])
def test_a_folder_gives_the_model_again(architecture: str, values: int, tmp_path: Path) -> None:
    model = small(architecture, token_values=values)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(again) is GCOGForClassification
    assert_same(again(*instances()).logits, model(*instances()).logits)
    assert_same(AutoModel.from_pretrained(tmp_path)(*instances()).pooler_output, model.gcog(*instances()).pooler_output)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == again.config.to_dict()


@every_family
def test_every_weight_is_trained(architecture: str) -> None:
    model = small(architecture, num_hidden_layers=2).train()
    model(*instances(), labels=torch.tensor([0, 6])).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("architecture", [one for one in ARCHITECTURES if one not in ("rnn", "gru")])
@pytest.mark.parametrize("layers", [1, 3])
def test_an_answer_costs_what_the_formula_says(architecture: str, layers: int) -> None:
    model = small(architecture, num_hidden_layers=layers).float().requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*(one[:1] for one in instances()))
    assert counter.get_total_flops() == forward_flops(model.config, 4)


def test_recurrent_nets_cost_in_proportion_to_the_instruction() -> None:
    """The counter does not know their cells."""
    config = GCOGConfig(architecture="gru")
    costs = [forward_flops(config, length) for length in (2, 3, 4)]
    assert costs[2] - costs[1] == costs[1] - costs[0] == 2 * 3 * 256 * (8 + 303 + 256)


def test_latents_of_zeros_stay_alike_and_learned_ones_do_not() -> None:
    alike = small("perceiver").gcog(*instances()).last_hidden_state
    assert_same(alike, alike[:, :1].expand_as(alike), 1e-12)
    apart = small("perceiver", learned_latents=True).gcog(*instances()).last_hidden_state
    assert differs(apart[:, 0], apart[:, 1])


def test_the_answer_depends_on_both() -> None:
    rules, stimuli = instances()
    for architecture in ARCHITECTURES:
        model = small(architecture)
        wanted = model(rules, stimuli).logits
        assert differs(model(rules.flip(0), stimuli).logits, wanted)
        assert differs(model(rules, stimuli.flip(0)).logits, wanted)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_latents": 0}, "num_latents=0: need at least 1"),
        ({"hidden_size": 15}, "hidden_size=15: need an even number that num_attention_heads=2 divides evenly"),
        ({"position_dropout": 1.0}, "position_dropout=1.0: a share, 0 to below 1"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        GCOGConfig(**(SMALL | changes))


def test_tokens_of_other_sizes_are_refused_in_a_line() -> None:
    rules, stimuli = instances()
    with pytest.raises(UsageError, match=r"^rules \(2, 4, 8\), stimuli \(2, 8, 3\): need"):
        small("perceiver")(rules, stimuli[:, 1:])
    with pytest.raises(UsageError, match=r"^4 tokens: need at most 3"):
        small("perceiver", max_instruction_length=3)(rules, stimuli)
