"""Momentum distillation and the queue: what they ask, how the copy follows, and that a resume goes on exactly."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl import ComputeBudget, PerceiverVLError, PerceiverVLForPreTraining, UsageError
from perceiver_vl.training.losses.base import MomentumTargets, PreTrainingBatch
from perceiver_vl.training.momentum import FILE, MomentumModel
from perceiver_vl.training.objectives import Objectives, PreTrainingModule
from perceiver_vl.training.run import checked_arguments
from perceiver_vl.training.statistics import pretraining_flops
from perceiver_vl.utils.distributed import GlobalBatch
from small_runs import recipe_of, run, training_log_of
from tiny import assert_same, tiny_batch, tiny_config, tiny_encoders, tiny_inputs, tiny_model

FULL = ComputeBudget()
ALONE = Objectives({"vtm": 0, "mlm": 0, "momentum": 1}, queue_size=7, momentum_decay=0.75)


def learn(module: PreTrainingModule, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """What training does with the loss of a step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    assert module.momentum is not None
    module.momentum.follow(module.model, module.momentum.step + 1)


def step_of(module: PreTrainingModule, batch: PreTrainingBatch, optimizer: torch.optim.Optimizer) -> Tensor:
    """The loss of a batch, which is learned from."""
    loss, _ = module(batch, [FULL])
    learn(module, loss, optimizer)
    return loss.detach()


def batches(count: int, pairs: int = 5) -> list[PreTrainingBatch]:
    """Others each time."""
    found = []
    for number in range(count):
        batch = tiny_batch(pairs)
        draw = torch.Generator().manual_seed(number)
        noise = torch.randn(batch.pixel_values.shape, generator=draw, dtype=torch.float64)
        found.append(replace(batch, pixel_values=batch.pixel_values + noise, input_ids=batch.input_ids.roll(number, 1)))
    return found


def by_definition(
    fast: PerceiverVLForPreTraining,
    slow: PerceiverVLForPreTraining,
    batch: PreTrainingBatch,
    queue: list[tuple[Tensor, Tensor]],
    alpha: float,
) -> Tensor:
    """One question at a time; `queue`: of vision and text, pair for pair."""
    vision, text = (
        [m.get_vision_features(batch.pixel_values, batch.frame_mask) for m in (fast, slow)],
        [m.get_text_features(batch.input_ids, batch.attention_mask) for m in (fast, slow)],
    )
    total = torch.zeros(()).double()
    for (mine, mine_slowly), (_, others), side in ((text, vision, 0), (vision, text, 1)):
        keys = [*others, *(pair[side] for pair in queue)]
        for row in range(len(batch)):
            odds = torch.stack([(fast.logit_scale * mine[row] @ key).exp() for key in keys])
            said = torch.stack([(fast.logit_scale * mine_slowly[row] @ key).exp() for key in keys])
            for place in range(len(keys)):
                target = alpha * said[place] / said.sum() + (1 - alpha) * (place == row)
                total = total - target.detach() * (odds[place] / odds.sum()).log() / (2 * len(batch))
    return total


@pytest.mark.parametrize(("alpha", "queue_size"), [(0.0, 0), (0.4, 0), (0.4, 7), (0.9, 12)])
def test_the_loss_is_what_its_definition_says(alpha: float, queue_size: int) -> None:
    model: PerceiverVLForPreTraining = tiny_model()
    module = PreTrainingModule(model, replace(ALONE, momentum_alpha=alpha, queue_size=queue_size))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    queue: list[tuple[Tensor, Tensor]] = []
    for batch in batches(4):
        assert module.momentum is not None
        slow = module.momentum.model
        wanted = by_definition(model, slow, batch, queue, alpha)
        loss, losses = module(batch, [FULL])
        assert losses.keys() == {"momentum"}
        assert_same(loss, wanted)
        head = model.contrastive
        some = [head.vision_projection.weight, head.logit_scale, model.perceiver_vl.encoder.latents]
        gradients, by_hand = (torch.autograd.grad(one, some, retain_graph=True) for one in (loss, wanted))
        for found, expected in zip(gradients, by_hand, strict=True):
            assert expected.abs().max() > 1e-9
            assert_same(found, expected)
        vision = slow.get_vision_features(batch.pixel_values, batch.frame_mask)
        text = slow.get_text_features(batch.input_ids, batch.attention_mask)
        queue = [*queue, *zip(vision, text, strict=True)]
        queue = queue[max(0, len(queue) - queue_size) :]
        learn(module, loss, optimizer)


def test_the_copy_follows_and_learns_nothing_itself() -> None:
    model: PerceiverVLForPreTraining = tiny_model(layer_drop=0.5, hidden_dropout_prob=0.3).train()
    module = PreTrainingModule(model, ALONE)
    assert module.momentum is not None
    copy = module.momentum.model
    wanted = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    assert module.state_dict().keys() == {f"model.{name}" for name in model.state_dict()}
    assert {id(one) for one in module.parameters()} == {id(one) for one in model.parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for batch in batches(3):
        step_of(module, batch, optimizer)
        for name, weight in model.named_parameters():
            wanted[name] = 0.75 * wanted[name] + 0.25 * weight.detach()
    for name, weight in copy.named_parameters():
        assert_same(weight, wanted[name])
        assert weight.grad is None
    assert not any(one.training for one in copy.modules())
    assert all(one.training for one in model.modules())
    assert len(module.momentum.queue["text"]) == 7


def test_the_share_of_what_it_says_grows() -> None:
    slow = MomentumModel(tiny_model(), replace(ALONE, momentum_alpha=0.4, momentum_warmup=4))
    found = []
    for step in range(6):
        slow.step = step
        found.append(slow.encode(tiny_batch(2), GlobalBatch((2,))).alpha)
    assert found == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])


def test_one_broken_clip_does_not_spoil_the_queue() -> None:
    slow = MomentumModel(tiny_model(), ALONE)
    vision, text = (torch.arange(float(n), n + 36).view(3, 12).double() for n in (0, 100))
    vision[1, 3] = float("nan")
    slow.enqueue(MomentumTargets(vision, text, vision[:0], text[:0], 0.4))
    assert torch.equal(slow.queue["vision"], vision[[0, 2]])
    assert torch.equal(slow.queue["text"], text[[0, 2]])


@pytest.mark.parametrize("learns", [False, True])
def test_frozen_encoders_are_shared_and_others_followed(learns: bool) -> None:
    model: PerceiverVLForPreTraining = tiny_model(**tiny_encoders())
    vision, text = model.perceiver_vl.vision_encoder, model.perceiver_vl.text_encoder
    assert vision is not None
    assert text is not None
    vision.requires_grad_(learns)
    text.requires_grad_(False)
    module = PreTrainingModule(model, ALONE)
    assert module.momentum is not None
    slow = module.momentum
    assert (slow.model.perceiver_vl.vision_encoder is vision) != learns
    assert slow.model.perceiver_vl.text_encoder is text
    queue: list[tuple[Tensor, Tensor]] = []
    step_of(module, batches(1)[0], torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05))
    slow.queue = {side: queued[:0] for side, queued in slow.queue.items()}
    batch = batches(2)[1]
    wanted = by_definition(model, slow.model, batch, queue, 0.4)
    assert_same(module(batch, [FULL])[0], wanted)


def test_chunks_and_budgets_leave_it_what_it_is() -> None:
    found = []
    for chunk in (None, 2):
        model = tiny_model(layer_drop=0.5).train()
        model.seed_layer_drop(3)
        module = PreTrainingModule(model, replace(ALONE, chunk=chunk))
        losses = [step_of(module, batch, torch.optim.SGD(model.parameters(), lr=0.1)) for batch in batches(3)]
        found.append(torch.stack(losses))
    assert_same(*found)
    module = PreTrainingModule(tiny_model(), replace(ALONE, queue_size=50), 0.5)
    loss, parts = module(batches(1)[0], [FULL, ComputeBudget(latents=3), ComputeBudget(cross_attentions=1)])
    loss.backward()
    assert {"momentum", "smaller", "distill"} == parts.keys()
    assert module.momentum is not None
    assert len(module.momentum.queue["text"]) == 5  # once a batch


def test_operations_are_those_that_are_counted() -> None:
    config = tiny_config(hidden_size=64, layer_drop=0.0, num_text_latents=6)
    model = PerceiverVLForPreTraining(config).train().requires_grad_(False)
    given = tiny_inputs(batch=4)
    batch = given | {"pixel_values": given["pixel_values"].float()}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        PreTrainingModule(model, ALONE)(PreTrainingBatch.from_dict(batch), [FULL])
    # Half of what is counted is the model's, three times as much with the backward pass, and half the copy's
    assert pretraining_flops(config, batch, ALONE) == pytest.approx(2 * counter.get_total_flops(), rel=0.1)


def test_a_copy_of_another_model_is_refused(tmp_path: Path) -> None:
    MomentumModel(tiny_model(), ALONE).save(tmp_path)
    other: PerceiverVLForPreTraining = tiny_model(num_latents=5)
    with pytest.raises(PerceiverVLError, match=rf"^{tmp_path / FILE}: the copy of another model[^\n]+$"):
        MomentumModel(other, ALONE).load(tmp_path, other, 3)
    slow = MomentumModel(tiny_model(), ALONE)
    slow.load(tmp_path / "none", tiny_model(seed=1), 3)  # of a run that had none so far
    assert slow.step == 3
    assert torch.equal(slow.model.vtm_query.query, tiny_model(seed=1).vtm_query.query)


# --- In a run -------------------------------------------------------------------------------------------------------

HOW: dict[str, Any] = {
    "objectives": {"vtm": 0, "mlm": 0, "vtc": 0.5, "momentum": 1, "queue_size": 10, "momentum_warmup": 3},
    "model": {"layer_drop": 0.5, "hidden_dropout_prob": 0.1},
    "training": {"learning_rate": 0.01, "gradient_accumulation_steps": 2},
}


def test_a_resumed_run_has_the_losses_of_one_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(output, **HOW)
    kept, lines = load_file(output / "model.safetensors"), training_log_of(output)
    checkpoints = output / "checkpoints"
    before = load_file(checkpoints / "checkpoint-6" / FILE)
    assert before["queue.text"].shape == (10, 16)
    for step in (4, 6):
        shutil.rmtree(checkpoints / f"checkpoint-{step}")
    run(output, resume=True, **HOW)
    for name, weight in load_file(output / "model.safetensors").items():
        assert torch.equal(weight, kept[name]), name
    for name, weight in load_file(checkpoints / "checkpoint-6" / FILE).items():
        assert torch.equal(weight, before[name]), name
    assert [line["loss_momentum"] for line in training_log_of(output)] == [line["loss_momentum"] for line in lines]
    assert not (output / FILE).exists()


def test_it_is_not_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perceiver_vl.training.run.is_sharded", lambda arguments: True)
    with pytest.raises(UsageError, match=r"^objectives.momentum=1: its copy is not sharded, leave out training.fsdp$"):
        checked_arguments(recipe_of(tmp_path / "run", objectives={"momentum": 1}))
