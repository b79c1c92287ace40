"""Uni-Perceiver: its folder, its cost, captions that see no later word, candidates that are kept, and experts."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from perceiver_vl.models.uni_perceiver import TASKS, UniPerceiverConfig, UniPerceiverModel, caption_mask
from perceiver_vl.models.uni_perceiver.flops import forward_flops
from perceiver_vl.utils.errors import UsageError
from tiny import assert_same, differs

SMALL: dict[str, Any] = {
    "vocab_size": 20,
    "begin_token_id": 1,
    "max_position_embeddings": 9,
    "image_size": 8,
    "patch_size": 4,
    "max_frames": 3,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "layer_scale": 0.5,
}
every_kind = pytest.mark.parametrize("experts", [0, 4])


def small(experts: int = 0, **changes: Any) -> UniPerceiverModel:
    torch.manual_seed(0)
    model = UniPerceiverModel(UniPerceiverConfig(num_experts=experts, **(SMALL | changes))).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def words(length: int = 5, batch: int = 2) -> Tensor:
    return torch.randint(2, 20, (batch, length), generator=torch.Generator().manual_seed(length))


def pictures(*frames: int) -> Tensor:
    return torch.randn(2, *frames, 3, 8, 8, generator=torch.Generator().manual_seed(3)).double()


@every_kind
def test_a_folder_gives_the_model_again(experts: int, tmp_path: Path) -> None:
    model = small(experts)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is UniPerceiverModel
    for task in TASKS:
        given = {"input_ids": words(), "pixel_values": pictures(), "task": task}
        assert_same(again(**given).pooler_output, model(**given).pooler_output)


@every_kind
@pytest.mark.parametrize(("frames", "text"), [(0, 5), (1, 0), (1, 5), (3, 5)])
def test_a_direction_costs_what_the_formula_says(experts: int, frames: int, text: int) -> None:
    model = small(experts).float().requires_grad_(False)
    given: dict[str, Any] = {"task": "question_answering"}
    given |= {"input_ids": words(text, 1)} if text else {}
    given |= {"pixel_values": pictures(frames)[:1].float()} if frames else {}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**given)
    assert counter.get_total_flops() == forward_flops(model.config, text, frames, segments=2)


@every_kind
def test_a_word_of_a_caption_is_named_by_those_before_it_alone(experts: int) -> None:
    model, ids = small(experts), words()
    wanted = model(ids, None, pictures(), "captioning").pooler_output
    for place in range(ids.shape[1]):
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 1) % 18 + 2
        found = model(changed, None, pictures(), "captioning").pooler_output
        assert_same(found[:, : place + 1], wanted[:, : place + 1])
        assert place + 1 == ids.shape[1] or differs(found[:, place + 1], wanted[:, place + 1])
    assert differs(model(ids, None, pictures().flip(0), "captioning").pooler_output, wanted)


def test_who_sees_whom_in_a_caption() -> None:
    seen = caption_mask(2, 6)
    assert seen[:2].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]  # the picture sees no word
    assert seen[3].nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert seen[6].nonzero().flatten().tolist() == [0, 1, 2, 6]


@every_kind
def test_padding_changes_nothing(experts: int) -> None:
    model, ids = small(experts), words()
    for task in ("image_classification", "question_answering", "captioning"):
        wanted = model(ids, None, pictures(), task).pooler_output
        padded = torch.cat([ids, torch.full((2, 2), 7)], 1)
        mask = torch.tensor([1] * 5 + [0] * 2).expand(2, -1)
        found = model(padded, mask, pictures(), task).pooler_output
        assert_same(found[:, :5] if task == "captioning" else found, wanted)


@every_kind
def test_likelihoods_are_cosines_over_a_temperature_and_candidates_may_be_kept(experts: int) -> None:
    model = small(experts)
    inputs = model(pixel_values=pictures()).pooler_output
    known = model(words(2, 6), task="image_classification", as_candidates=True).pooler_output
    assert_same(inputs.norm(dim=-1), torch.ones(2).double())
    logits = model.logits(inputs, known, "image_classification")
    scale = model.head.log_scales["img_cls"].exp().clamp(max=100)
    assert_same(logits, scale * inputs @ known.T)
    alone = [model(words(2, 6)[row : row + 1], as_candidates=True).pooler_output for row in range(6)]
    assert_same(model.logits(inputs, torch.cat(alone), "image_classification"), logits)
    with torch.no_grad():
        model.head.log_scales["img_cls"].fill_(50.0)
    assert_same(model.logits(inputs, known, "image_classification"), 100 * inputs @ known.T)


def test_experts_are_chosen_by_the_task_and_its_role() -> None:
    model = small(4)
    same = {"input_ids": words(), "as_candidates": False}
    asked = [model(**same, task=task).last_hidden_state for task in ("masked_words", "text_classification")]
    assert torch.equal(*asked)  # the same bits
    assert differs(asked[0], model(words(), task="captioning", as_candidates=True).last_hidden_state)
    dense = small(0)
    asked = [dense(words(), task=task, as_candidates=True).last_hidden_state for task in ("masked_words", "retrieval")]
    assert torch.equal(*asked)


@every_kind
def test_every_weight_is_trained_by_the_tasks_together(experts: int) -> None:
    model = small(experts, temperatures=["img_cls", "caption", "downstream"], drop_path=0.0, gate_noise=0.0)
    clips, total = pictures(2), torch.zeros(()).double()
    for task in ("image_classification", "question_answering", "captioning"):
        text = {} if task == "image_classification" else {"input_ids": words()}
        known = model(words(2, 6), task=task, as_candidates=True).pooler_output
        found = model(**text, pixel_values=clips, task=task).pooler_output
        total = total + model.logits(found, known, task).square().mean()
    total.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_the_paper_s_model_has_the_paper_s_parameters() -> None:
    with torch.device("meta"):
        assert UniPerceiverModel(UniPerceiverConfig()).num_parameters() / 1e6 == pytest.approx(124, abs=2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 0}, "hidden_size=0: need at least 1"),
        ({"num_attention_heads": 5}, "num_attention_heads=5: must divide hidden_size=12 evenly"),
        ({"patch_size": 3}, "patch_size=3: must divide image_size=8 evenly"),
        ({"begin_token_id": 20}, "begin_token_id=20: not one of vocab_size=20 words"),
        ({"num_experts": 1}, "num_experts=1: need 2 or more, as two are chosen, or 0 for none"),
        ({"drop_path": 1.0}, "drop_path=1.0: a share"),
        ({"temperatures": []}, "temperatures=[], initial_temperature=0.07: need a name at least"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        UniPerceiverConfig(**(SMALL | changes))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "input_ids=None, pixel_values=None: need one of them at least"),
        ({"input_ids": torch.zeros(1, 10, dtype=torch.long)}, "10 words: need at most 9"),
        ({"pixel_values": torch.zeros(1, 3, 9, 8)}, "pixel_values (1, 3, 9, 8): need (batch, up to 3 frames, 3, 8, 8)"),
        ({"pixel_values": torch.zeros(1, 4, 3, 8, 8)}, "pixel_values (1, 4, 3, 8, 8): need"),
        ({"pixel_values": torch.zeros(1, 3, 8, 8), "task": "speech"}, "task=speech: unknown, choose from"),
    ],
)
def test_inputs_of_another_kind_are_refused_in_a_line(inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        small()(**inputs)
    with pytest.raises(UsageError, match=r"^temperature=mood: unknown"):
        small().head(torch.zeros(1, 12), torch.zeros(1, 12), "mood")
