"""What a run starts from: its clips, its processor and configuration, and its model."""

from pathlib import Path
from typing import Any, Literal

import torch

from perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.console import quiet
from perceiver_vl.data.broken import check_listed
from perceiver_vl.data.clips import CachedClips, ClipSource, FolderClips
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.mixture import Mixture
from perceiver_vl.data.records import Folder, Problem
from perceiver_vl.data.world import World
from perceiver_vl.errors import UsageError, first_line
from perceiver_vl.model import PerceiverVLForPreTraining
from perceiver_vl.model.pretrained import initialise_from
from perceiver_vl.pretrained_folder import check_model_folder
from perceiver_vl.processing import PerceiverVLImageProcessor, PerceiverVLProcessor, load_tokenizer, train_tokenizer
from perceiver_vl.recipe import Data, Recipe, Split


def open_split(split: Split, size: tuple[int, int], data: Data) -> tuple[ClipSource, list[Problem]]:
    """The clips of one split of a recipe, at `size` (height, width), and the records that had to be left out.

    Raises `PerceiverVLError` where these are more than `data.max_broken` allows.
    """
    source: ClipSource
    problems: list[Problem] = []
    if split.world is not None:
        world = split.world
        source = World(split.split or "train", world.clips, world.seed, data.num_frames, world.size)
    elif split.shards is not None:
        from perceiver_vl.data.shards import ShardedClips

        source = ShardedClips(split.shards, size, split.split)
    else:
        folder = _read(split, data.strict)
        check_listed(folder.problems, len(folder.records), data.max_broken)
        source, problems = FolderClips(folder.records, size), folder.problems
    return CachedClips(source) if data.cache else source, problems


def open_training(data: Data, size: tuple[int, int]) -> tuple[Mixture, list[Problem]]:
    """The clips that a recipe trains on, decoded for frames of `size`, and the records that had to be left out."""
    opened = [open_split(split, data.augmentation.decoding_size(size), data) for split in data.train]
    return Mixture([source for source, _ in opened]), [problem for _, problems in opened for problem in problems]


def _read(split: Split, strict: bool) -> Folder:
    """The records of a folder that have captions."""
    assert split.folder is not None
    name = split.split
    if split.benchmark is None:
        return read_folder(split.folder, split=name, metadata=split.metadata, columns=split.columns, strict=strict)
    from perceiver_vl.data.benchmarks import read_benchmark

    folder = read_benchmark(split.benchmark, split.folder, split=name, strict=strict)
    told = [record for record in folder.records if record.texts]
    if not told:
        raise UsageError(f"data: benchmark={split.benchmark}: has no captions to train or rank by, choose another")
    folder.problems += [Problem(record.file_name, "no caption") for record in folder.records if not record.texts]
    folder.records = told
    return folder


def processor_and_config(recipe: Recipe, checkpoint: Path | None) -> tuple[PerceiverVLProcessor, PerceiverVLConfig]:
    """The processor and configuration of a run: of the checkpoint, of the model it starts from, or new ones."""
    start = checkpoint or recipe.initialise.model
    if start is not None:
        folder = check_model_folder(start)
        config = PerceiverVLConfig.from_pretrained(folder)
        if checkpoint is None:
            text = config.text_latents_of(recipe.model.get("num_latents", config.num_latents))
            config = PerceiverVLConfig.from_dict(config.to_dict() | {"num_text_latents": text} | recipe.model)
        for name, value in recipe.model.items():
            if value is not None and getattr(config, name, None) != value:
                raise UsageError(
                    f"model.{name}={value}: {folder} has {getattr(config, name, 'no such key')}, resume with that"
                )
        with quiet():
            processor = PerceiverVLProcessor.from_pretrained(folder)
    else:
        for name in ("vocab_size", "mask_token_id", "pad_token_id"):
            if name in recipe.model:
                raise UsageError(
                    f"model.{name}={recipe.model[name]}: comes from the tokenizer, see tokenizer in the recipe"
                )
        longest = recipe.model.get("max_text_length", PerceiverVLConfig.max_text_length)
        tokenizer = _tokenizer(recipe, longest)
        words = {
            "vocab_size": len(tokenizer),
            "mask_token_id": tokenizer.mask_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        config = PerceiverVLConfig(**words, **recipe.model)
        size = {"height": config.image_size, "width": config.image_size}
        processor = PerceiverVLProcessor(
            PerceiverVLImageProcessor(size=size, num_frames=recipe.data.num_frames), tokenizer
        )
    if recipe.data.num_frames > config.max_frames:
        raise UsageError(
            f"data.num_frames={recipe.data.num_frames}: more than model.max_frames={config.max_frames}, "
            "the rows of the temporal table"
        )
    return processor, config


def _tokenizer(recipe: Recipe, longest: int) -> Any:
    """The tokenizer by name, or of the text model that the run starts from, or one trained on the captions."""
    name = recipe.tokenizer.name or recipe.initialise.text
    if name is None:
        source, _ = open_training(recipe.data, (1, 1))
        captions = (text for index in range(len(source)) for text in source.record(index).texts)
        return train_tokenizer(captions, vocab_size=recipe.tokenizer.vocab_size, max_length=longest)
    tokenizer = load_tokenizer(name)
    tokenizer.model_max_length = longest
    return tokenizer


def starting_model(recipe: Recipe, config: PerceiverVLConfig, seed: int, resumed: bool) -> PerceiverVLForPreTraining:
    """The model at the start of a run; of one that is resumed the Trainer loads the weights."""
    torch.manual_seed(seed)
    start = recipe.initialise
    if resumed:
        return PerceiverVLForPreTraining(config)
    if start.model is None:
        model = PerceiverVLForPreTraining(config)
    else:
        model = _model_of(start.model, config, start.latents)
    if start.vision or start.text:
        initialise_from(model, vision=start.vision, text=start.text)
    return model


def _model_of(folder: Path, config: PerceiverVLConfig, latents: Literal["fresh", "interpolate"]) -> Any:
    """The model of a folder with the recipe's changes to its configuration, another number of latents among them."""
    own = PerceiverVLConfig.from_pretrained(folder)
    fitting = config.to_dict() | {name: getattr(own, name) for name in ("num_latents", "num_text_latents")}
    try:
        with quiet():
            model = PerceiverVLForPreTraining.from_pretrained(folder, config=PerceiverVLConfig.from_dict(fitting))
    except RuntimeError as error:
        raise UsageError(f"initialise.model={folder}: does not fit the recipe's model ({first_line(error)})") from error
    if config.num_latents != own.num_latents:
        model.resize_latents(config.num_latents, latents)
    model.config.num_text_latents = config.num_text_latents
    return model
