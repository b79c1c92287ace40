"""Equal to three public implementations of Perceiver AR, value by value: logits, losses, what is on the way to them,
gradients, and generation token by token, on the weights and inputs of whatever set of cases there is.
"""

import pytest
import torch
from parity import DTYPES, TOLERANCE
from perceiver_ar import FOLDER, MANIFEST, config_of, differences, given, model_of, our_config
from safetensors.torch import load_file

from perceiver_vl import PerceiverVLError
from perceiver_vl.models.perceiver_ar.convert import VARIANTS, convert_weights

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden tensors at {FOLDER}")
PADDED = [
    name
    for name, case in MANIFEST["cases"].items()
    if config_of(name)["variant"] == "krasserm"
    and {"in.pad_mask", "out.f64.logits"} <= set(case["tensors"])
    and "in.rand" not in case["tensors"]
]


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("case", MANIFEST["cases"])
def test_every_value_of_a_case(case: str, precision: str) -> None:
    found = differences(case, precision)
    assert {name: value for name, value in found.items() if not value <= TOLERANCE[precision]} == {}


@pytest.mark.parametrize("case", MANIFEST["cases"])
def test_no_golden_value_is_left_out(case: str) -> None:
    golden, compared = given(case), differences(case, "f64")
    values = {name.replace(".f64.", ".") for name in golden if name.startswith(("out.f64.", "mid.f64."))}
    # Masks, places, targets and the reference's caches tell how the values come about; these are compared.
    kinds = ("logits", "loss")
    wanted = {name for name in values if name.endswith(kinds)} | {name for name in values if "mid." in name}
    missing = {name for name in wanted if name not in compared and "final_cache" not in name}
    assert {name for name in missing if name.removeprefix("out.") not in compared} == set()
    parameters = {name for name, _ in model_of(case, torch.float32).named_parameters()}
    gradients = {name.removeprefix("grad.") for name in compared if name.startswith("grad.")}
    assert gradients in (set(), parameters)


@pytest.mark.parametrize("case", PADDED)
def test_rows_whose_padding_is_prefix_are_equal_with_our_own_masks(case: str) -> None:
    """There padding leaks into a latent that has nothing but padding before it; here such a latent sees itself."""
    golden = given(case)
    prefix, tokens, padded = int(golden["in.prefix_len"]), golden["in.tokens"][:, :-1], golden["in.pad_mask"][:, :-1]
    model, wanted = model_of(case, torch.float64), golden["out.f64.logits"]
    leaks = padded[:, prefix:].any(1)
    with torch.no_grad():
        found = model(tokens, (~padded).long(), prefix_length=prefix).logits
    torch.testing.assert_close(found[~leaks], wanted[~leaks], atol=1e-9, rtol=0.0)
    for row in leaks.nonzero()[:, 0].tolist():  # as if the padding were not there, which is not so in the reference
        real = tokens[row, padded[row].sum() :][None]
        with torch.no_grad():
            alone = model(real).logits[0]
        torch.testing.assert_close(found[row, -len(alone) :], alone, atol=1e-9, rtol=0.0)
        assert (wanted[row, -len(alone) :] - alone).abs().max() > 1e-6


@pytest.mark.parametrize("weights", MANIFEST["weights"])
def test_weights_are_recognised_and_all_placed(weights: str) -> None:
    state = load_file(FOLDER / weights)
    config = MANIFEST["weights"][weights]["config"]
    variant = config["variant"]
    assert variant in VARIANTS
    del state[next(name for name in state if "norm" in name)]
    with pytest.raises(PerceiverVLError, match=f"as a Perceiver AR of {variant} has it"):
        convert_weights(state, **our_config(config))
