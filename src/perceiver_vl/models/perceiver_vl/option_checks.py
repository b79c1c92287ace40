"""Options of a configuration that cannot be, or not together: refused by name, before anything is built."""

from typing import Any

from perceiver_vl.utils.errors import UsageError

_MOST = 1_000_000  # of a count


def check_fewer_keys(config: Any) -> None:
    """Raise `UsageError` for ways to read fewer tokens (`fewer_keys`) that a `PerceiverVLConfig` cannot have."""
    least = {"rolled_tokens": 0, "rolled_channels": 0, "merged_patches": 1, "frame_summaries": 0}
    least |= {"text_guided_tokens": 4, "sampled_points": 0, "routed_regions": 0, "region_size": 1}
    for name, lowest in least.items():
        value, most = getattr(config, name), 1 if name.startswith("rolled") else _MOST
        if value is not None and not lowest <= value <= most:
            off = ", or None" if name in ("merged_patches", "text_guided_tokens") else ""
            raise UsageError(f"{name}={value}: need {lowest} to {most}{off}")
    on = {name: f"{name}={value}" for name in list(least)[:-1] if (value := getattr(config, name))}
    fewer = {name: said for name, said in on.items() if not name.startswith("rolled")}
    if len(fewer) > 1 and fewer.keys() != {"merged_patches", "text_guided_tokens"}:
        raise UsageError(f"{', '.join(fewer.values())}: choose one, or merged_patches with text_guided_tokens")
    if on and config.masked_patches:
        raise UsageError(f"{next(iter(on.values()))}: masked_patches asks for single patches, leave one out")
    if config.caption_prefix == "frames" and (found := on.get("merged_patches") or on.get("frame_summaries")):
        raise UsageError(f"{found}: captions of caption_prefix='frames' attend to single patches, leave one out")
    if config.frame_summaries and config.tubelet_size != 1:
        raise UsageError(f"{on['frame_summaries']}: of single frames, not of tubelet_size={config.tubelet_size}")
    if found := on.get("sampled_points") or on.get("routed_regions"):
        if config.num_blocks < 2 or config.coarse_patch_size is not None or config.modalities:
            raise UsageError(
                f"{found}: of patches on one grid, after a first cross-attention; need num_blocks of 2 or more, no "
                "coarse_patch_size, no modalities"
            )
        if config.routed_regions and config.grid % config.region_size:
            raise UsageError(
                f"region_size={config.region_size}: must divide the {config.grid} rows of a frame's patches"
            )
