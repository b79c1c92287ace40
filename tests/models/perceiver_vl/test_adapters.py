"""LoRA by peft: only the adapters learn, and they are saved and loaded apart from the model."""

from pathlib import Path

import peft
import torch
from torch import Tensor

from perceiver_vl import PerceiverVLForPreTraining
from tiny import assert_same, differs, tiny_inputs, tiny_model


def lora(model: PerceiverVLForPreTraining) -> "peft.PeftModel":
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))


def loss_of(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    labels = torch.where(torch.arange(inputs["input_ids"].shape[1]) < 3, inputs["input_ids"], -100)
    labels = labels.expand_as(inputs["input_ids"])
    return model(**inputs, mlm_labels=labels, vtm_labels=torch.tensor([0, 1])).loss


def train(model: torch.nn.Module, inputs: dict[str, Tensor], steps: int = 5) -> list[float]:
    learned = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model.train(), inputs)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def test_only_the_adapters_learn_and_the_saved_adapter_loads_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, inputs = tiny_model(layer_drop=0.0), tiny_inputs()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    untrained = plain(**inputs).vtm_logits
    adapted = lora(tiny_model(layer_drop=0.0)).double()
    learned = [name for name, value in adapted.named_parameters() if value.requires_grad]
    assert all(".lora_" in name for name in learned)
    attentions = 3 * (1 + 2) + 1  # a read and two self-attentions a block, and the decoder's
    assert len(learned) == attentions * 2 * 2  # of queries and values, two matrices each
    assert_same(adapted(**inputs).vtm_logits, untrained)  # an adapter starts as nothing

    losses = train(adapted, inputs)
    assert losses[-1] < losses[0]
    trained = adapted(**inputs).vtm_logits.detach()
    assert differs(trained, untrained)
    for name, value in adapted.get_base_model().state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(value, before[name.replace(".base_layer", "")]), name

    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 100_000
    again = peft.PeftModel.from_pretrained(tiny_model(layer_drop=0.0), tmp_path).double().eval()
    assert_same(again(**inputs).vtm_logits, trained, 1e-6)  # the adapter is stored in float32
    merged = again.merge_and_unload()
    assert type(merged) is PerceiverVLForPreTraining
    assert_same(merged(**inputs).vtm_logits, trained, 1e-6)


def test_the_adapters_of_transformers_itself_work_too(tmp_path: Path) -> None:
    inputs = tiny_inputs()
    model = tiny_model(layer_drop=0.0)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    model.double()
    train(model, inputs)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("model*.safetensors"))
    again = tiny_model(layer_drop=0.0)
    untrained = again(**inputs).vtm_logits
    again.load_adapter(str(tmp_path))
    found = again.double().eval()(**inputs).vtm_logits
    assert_same(found, model(**inputs).vtm_logits, 1e-6)
    assert differs(found, untrained)


def test_layer_drop_and_checkpointing_reach_through_the_adapter() -> None:
    inputs = tiny_inputs()
    adapted = lora(tiny_model(layer_drop=0.5)).double().train()
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(0))
    adapted.seed_layer_drop(1)
    found = []
    for enable in (False, True):
        if enable:
            adapted.base_model.model.activation_checkpointing_enable()
        adapted.zero_grad()
        loss_of(adapted, inputs).backward()
        found.append({name: value.grad.clone() for name, value in adapted.named_parameters() if value.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 8
    for name, gradient in found[0].items():
        assert_same(found[1][name], gradient, 1e-12)
