"""Options of a configuration that cannot be, or not together: refused by name, before anything is built."""

from typing import Any

from perceiver_vl.utils.errors import UsageError

_MOST = 1_000_000  # of a count


def check_tokens(config: Any) -> None:
    """Raise `UsageError` for ways to make tokens, and to attend to them, that a `PerceiverVLConfig` cannot have."""
    if config.vision_config is not None and (config.patch_stem != "linear" or config.patch_norm):
        raise UsageError("patch_stem, patch_norm: of patches, in whose place a vision_config gives its tokens")
    if config.vision_config is not None and (config.coarse_patch_size is not None or config.tubelet_size != 1):
        raise UsageError(
            "coarse_patch_size, tubelet_size: of patches, in whose place a vision_config gives tokens of each frame"
        )
    coarse = config.coarse_patch_size
    if coarse is not None and (coarse < 1 or coarse == config.patch_size or config.image_size % coarse):
        raise UsageError(
            f"coarse_patch_size={coarse}: must divide image_size={config.image_size} evenly, and be another one than "
            f"patch_size={config.patch_size}; None for one size of patches"
        )
    if not 1 <= config.tubelet_size <= config.max_frames:
        raise UsageError(f"tubelet_size={config.tubelet_size}: need 1 to max_frames={config.max_frames} frames")
    if config.untied_modalities and config.modality_aggregation != "joint":
        raise UsageError(
            "untied_modalities=True: of modality_aggregation=joint; "
            f"{config.modality_aggregation} has cross-attentions for each modality already"
        )
    if config.num_experts < 0 or config.num_experts == 1:
        raise UsageError(f"num_experts={config.num_experts}: need 2 or more, as two are chosen, or 0 for none")
    if config.layer_scale is not None and not 0.0 < config.layer_scale <= 1000.0:
        raise UsageError(f"layer_scale={config.layer_scale}: need a number above 0, at most 1000, or None")
    if config.masked_patches and (config.patch_stem != "linear" or config.temporal_kernel):
        raise UsageError(
            f"masked_patches=True: with patch_stem={config.patch_stem!r} or a temporal_kernel tokens know of their "
            "neighbours, masked or not; leave these out"
        )
    if config.masked_patches and (config.coarse_patch_size is not None or config.tubelet_size > 1):
        raise UsageError(
            "masked_patches=True: with coarse_patch_size or tubelet_size a patch is seen by tokens that are not "
            "masked; leave these out"
        )
    if config.patch_stem == "convolutional" and config.patch_size.bit_count() != 1:
        raise UsageError(f"patch_size={config.patch_size}: patch_stem='convolutional' needs a power of 2")
    if config.sincos_positions is not None and not 0.0 < config.sincos_positions <= 1000.0:
        raise UsageError(f"sincos_positions={config.sincos_positions}: need a size above 0, at most 1000, or None")
    if config.sincos_positions is not None and config.hidden_size % 4:
        raise UsageError(f"sincos_positions: need a hidden_size that 4 divides, not {config.hidden_size}")
    if not 0 <= config.temporal_kernel <= 1001 or (config.temporal_kernel and config.temporal_kernel % 2 == 0):
        raise UsageError(f"temporal_kernel={config.temporal_kernel}: need an odd number of frames up to 1001, or 0")


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
