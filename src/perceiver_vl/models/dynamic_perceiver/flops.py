"""What a Dynamic Perceiver costs up to each exit, from the configuration alone.

`tests/models/dynamic_perceiver/test_dynamic_perceiver_flops.py` holds this against the operations counted on built
models.
"""

from perceiver_vl.models.block_flops import block_flops
from perceiver_vl.models.dynamic_perceiver.backbone import squeezed_width
from perceiver_vl.models.dynamic_perceiver.configuration import DynamicPerceiverConfig


def exit_flops(config: DynamicPerceiverConfig, height: int, width: int) -> list[int]:
    """Of one picture that leaves at each of the four exits; one that leaves early has paid for the exits before."""
    size = (height + 1) // 2, (width + 1) // 2
    total = 2 * 9 * config.num_channels * config.stem_width * size[0] * size[1]
    widths, numbers = config.latent_widths, config.latents_of_stages
    classes, last = config.num_labels, config.widths[-1]
    known = widths[-1] if config.transfer_knowledge else 0
    found = []
    for stage, (channels, latents) in enumerate(zip(widths, numbers, strict=True)):
        places = size[0] * size[1]
        if stage:
            total += 2 * widths[stage - 1] * (numbers[stage - 1] * latents + latents * channels)
        if stage and config.write_features:
            total += _write(places, latents, channels, channels)
        total += 2 * 49 * channels * places * config.depthwise_convolutions
        total += block_flops(latents, config.pooled_size**2, channels, intermediate_size=channels)
        ratio = config.intermediate_ratio
        total += config.latent_depths[stage] * block_flops(
            latents, latents, channels, intermediate_size=ratio * channels
        )
        if stage == 2:
            total += 2 * channels * classes
        if stage == 3:
            total += 2 * (classes * known + (channels + known) * classes)
        if stage >= 2:
            found.append(total)
        cost, size = _features(config, stage, size)
        total += cost
    found.append(total + 2 * last * classes)
    total = found[-1] + (_write(size[0] * size[1], numbers[-1], last, widths[-1]) if config.last_write else 0)
    return [*found, total + 2 * (classes * known + (last + widths[-1] + known) * classes)]


def feature_flops(config: DynamicPerceiverConfig, height: int, width: int) -> list[int]:
    """Of the feature branch alone, with a linear classifier after the second, the third and the fourth stage."""
    size = (height + 1) // 2, (width + 1) // 2
    total, found = 2 * 9 * config.num_channels * config.stem_width * size[0] * size[1], []
    for stage, channels in enumerate(config.widths):
        cost, size = _features(config, stage, size)
        total += cost
        if stage:
            total += 2 * channels * config.num_labels
            found.append(total)
    return found


def _write(places: int, latents: int, width: int, latent_width: int) -> int:
    narrow = max(1, width // 8)
    sizes = {"input_size": latent_width, "qk_size": narrow, "v_size": narrow, "intermediate_size": width}
    return block_flops(places, latents, width, **sizes)  # type: ignore[arg-type]


def _features(config: DynamicPerceiverConfig, stage: int, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Operations of a stage of the feature branch, and the size of the map that comes out."""
    width, total, before = config.widths[stage], 0, config.latent_widths[stage]
    for block in range(config.depths[stage]):
        places = size[0] * size[1]
        if not block:
            size = (size[0] + 1) // 2, (size[1] + 1) // 2
        new = size[0] * size[1]
        total += 2 * before * width * (places + (0 if block else new))  # and the projection of what came in
        total += 2 * new * width * (9 * config.group_widths[stage] + width)
        total += 4 * width * squeezed_width(config, before)
        before = width
    return total, size
