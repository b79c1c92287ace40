"""What reading fewer tokens saves: operations, and processor time on one thread, of a clip of 8 frames with its words.

    python scripts/fewer_tokens.py

At base size (224 pixels, 40 words) and small (64 pixels, patches of 8, 12 words), random weights and inputs. Runs of
all settings are interleaved; the median of each is shown, and its ratio to nothing set.
"""

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from perceiver_vl import PerceiverVLConfig, PerceiverVLModel
from perceiver_vl.bench.profiling import time_interleaved
from perceiver_vl.models.perceiver_vl.flops import encoder_flops
from perceiver_vl.utils.threads import threads_in_use
from perceiver_vl.utils.timing import MatrixProduct

FRAMES = 8
SMALL = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_blocks": 3,
    "self_attentions_per_block": 1,
    "num_latents": 16,
    "image_size": 64,
    "patch_size": 8,
}
SIZES: dict[str, tuple[dict[str, Any], int, tuple[dict[str, Any], ...]]] = {
    "base": (
        {},
        40,
        (
            {},
            {"merged_patches": 36},
            {"frame_summaries": 4},
            {"text_guided_tokens": 128},
            {"sampled_points": 16},
            {"routed_regions": 4},
        ),
    ),
    "small": (
        SMALL,
        12,
        (
            {},
            {"merged_patches": 16},
            {"frame_summaries": 4},
            {"text_guided_tokens": 64},
            {"sampled_points": 16},
            {"routed_regions": 4},
        ),
    ),
}


def reading(config: PerceiverVLConfig, words: int, seed: int) -> Callable[[], object]:
    """One clip and its words read together by random weights."""
    torch.manual_seed(seed)
    model = PerceiverVLModel(config).eval()
    given = {
        "input_ids": torch.randint(5, config.vocab_size, (1, words)),
        "pixel_values": torch.rand(1, FRAMES, 3, config.image_size, config.image_size),
    }
    return partial(model, **given)


@torch.inference_mode()
def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    print("| size | set | GFLOPs | × | ms | × |")
    print("| --- | --- | --- | --- | --- | --- |")
    with threads_in_use(1):
        for size in chosen.sizes:
            given, words, settings = SIZES[size]
            configs = [PerceiverVLConfig(**given, **one) for one in settings]
            calls = [reading(config, words, chosen.seed) for config in configs]
            for call in calls:
                call()
            product = MatrixProduct(512, "cpu")
            found = time_interleaved(calls, chosen.runs, product, lambda: None, time.process_time).timings
            flops = [encoder_flops(config, FRAMES, words) / 1e9 for config in configs]
            for one, operations, timing in zip(settings, flops, found, strict=True):
                label = ", ".join(f"`{name}: {value}`" for name, value in one.items()) or "nothing"
                shares = operations / flops[0], timing.milliseconds / found[0].milliseconds
                cells = f"{operations:.3g}", f"{shares[0]:.2f}", f"{timing.milliseconds:.3g}", f"{shares[1]:.2f}"
                print(f"| {size} | {label} | {' | '.join(cells)} |")
    print(f"{chosen.runs} interleaved runs, seed {chosen.seed}; {platform.machine()}; torch {torch.__version__}")


if __name__ == "__main__":
    main()
