"""What Perceiver AR is for (Hawthorne et al. 2022, 4.1 and 4.2): it copies across a context far longer than its
latents, and reads more context at a cost that is linear in it.

Copying: the second half of a sequence of random tokens is the first again, and each of the last N tokens, which are the
latents, is to be named. Reading: bytes of text, the same last N of them predicted from contexts of several lengths.

The context is attended to once, as it was embedded. So where a byte is embedded by itself nothing in it tells what came
before it, and a latent cannot look for the place where its last bytes stood earlier, to see what followed; where each
is embedded with those before it (`SeveralBytes`), it can.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import perceiver_vl
from perceiver_vl.bench.siblings.training import train
from perceiver_vl.bench.tables import BenchReport, Section
from perceiver_vl.models.perceiver_ar import PerceiverARConfig, PerceiverARForCausalLM
from perceiver_vl.models.perceiver_ar.flops import forward_flops
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.timing import timed

LATENTS = 64
COPY_BATCH, READ_BATCH = 4, 8
TOKENS = 32  # of the copying
CONTEXTS = (256, 512, 1024, 2048, 4096)
EMBEDDED = (1, 4)
COPY_TESTED, READ_TESTED = 64, 256  # sequences of a test
GENERATED = 256  # tokens that it copies feeding on its own, of one batch
_TEXT = (".md", ".rst", ".txt", ".py", ".yaml")


@dataclass(frozen=True)
class Copied:
    """What a model copies of fresh sequences, % of the last tokens; `generated`: of `GENERATED` that it makes itself,
    one after the other, with the cache; `guesser`: who guesses. Seconds of a token of `COPY_BATCH` sequences, with the
    cache and by a forward pass over all that is there (median).
    """

    context: int
    accuracy: float
    generated: float
    guesser: float
    seconds_cached: float
    seconds_uncached: float
    loss: float
    minutes: float


@dataclass(frozen=True)
class Read:
    """Bits a byte of held-out text from a context of so many bytes, of which so many are embedded together; operations
    of a sequence, seconds of a step.
    """

    context: int
    embedded: int
    bits: float
    gflops: float
    seconds: float
    minutes: float


@dataclass(frozen=True)
class LongContextReport(BenchReport):
    """copied: None where it was not asked for. guesser: bits a byte of the training text's frequencies of bytes."""

    copied: Copied | None
    read: list[Read]
    guesser: float
    latents: int
    copy_steps: int
    steps: int
    text_bytes: int

    def sections(self) -> list[Section]:
        """Copying, and reading, a row a context."""
        found = []
        if self.copied is not None:
            one = self.copied
            row = (f"{one.context:,}", *(f"{value:.1f}" for value in (one.accuracy, one.generated, one.guesser)))
            title = f"the last {self.latents} tokens, copied from {one.context // 2:,} before, % right"
            notes = (
                f"{self.copy_steps} steps of {COPY_BATCH} sequences of {TOKENS} different tokens.",
                f"A token takes {1e3 * one.seconds_cached:.1f} ms with the cache, {1e3 * one.seconds_uncached:.1f} by "
                f"a pass over all, of {COPY_BATCH} sequences.",
            )
            titles = ("tokens", "named", "generated", "guessed", "minutes")
            found.append(Section(title, titles, [(*row, f"{one.minutes:.1f}")], notes))
        rows = [
            (
                str(one.embedded),
                f"{one.context:,}",
                *(f"{one.bits:.3f}", f"{one.gflops:.2f}", f"{one.seconds:.2f}", f"{one.minutes:.1f}"),
            )
            for one in self.read
        ]
        note = (
            f"Frequencies of bytes alone: {self.guesser:.3f} bits. {self.steps} steps of {READ_BATCH} places, the same "
            f"for all, in {self.text_bytes / 1e3:.0f} kB of text; tested on the last of the files, the same places."
        )
        title = f"the last {self.latents} bytes of a context"
        columns = ("embedded together", "bytes", "bits a byte", "GFLOPs", "s a step", "minutes")
        found.append(Section(title, columns, rows, (note,)))
        return found


def measure_long_context(
    text: str | Path | None = None,
    *,
    copy_context: int = 8192,
    copy_steps: int = 800,
    contexts: Sequence[int] = CONTEXTS,
    embedded: Sequence[int] = EMBEDDED,
    steps: int = 1500,
    seed: int = 0,
    progress: bool = False,
) -> LongContextReport:
    """Train a model that copies, and one for each of `contexts` that reads the text files of the folder `text`, None:
    of `docs` in this folder if there is one, else of this package's code.

    `copy_steps`: 0 leaves copying out. `embedded`: bytes that are embedded together, each number of them with all
    contexts. Raises `UsageError` for a folder without enough text, and for contexts that are
    too short.
    """
    if min(contexts) < 2 * LATENTS:
        raise UsageError(f"contexts={min(contexts)}: need {2 * LATENTS} bytes or more, twice the latents")
    if copy_steps and (copy_context % 2 or copy_context < 4 * LATENTS):
        raise UsageError(f"copy_context={copy_context}: need an even number of {4 * LATENTS} tokens or more")
    if not 1 <= min(embedded) <= max(embedded) <= min(contexts):
        raise UsageError(f"embedded={','.join(map(str, embedded))}: need 1 byte or more, at most a context")
    if text is None:
        text = "docs" if Path("docs").is_dir() else Path(perceiver_vl.__file__).parent
    training, test = split_text(text, most=max(contexts))
    with ProgressBars(progress) as stages:
        copied = None
        if copy_steps:
            copied = _copy(copy_context, copy_steps, seed, stages.stage(f"Copying, {copy_context}", copy_steps))
        read = []
        for together, context in itertools.product(embedded, contexts):
            advance = stages.stage(f"Reading, {context} bytes, {together} embedded together", steps)
            read.append(_read(training, test, context, together, max(contexts), steps, seed, advance))
    return LongContextReport(
        copied,
        read,
        guesser=_bits_of_frequencies(training, test),
        latents=LATENTS,
        copy_steps=copy_steps,
        steps=steps,
        text_bytes=len(training) + len(test),
        runs=1,
        seed=seed,
    )


def split_text(folder: str | Path, most: int) -> tuple[Tensor, Tensor]:
    """Bytes `(L,)` int64 of the text files in a folder, by name: a tenth at the end is the test, of whole contexts."""
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"text={folder}: no such folder, name one of text files ({', '.join(_TEXT)})")
    files = sorted(path for path in root.rglob("*") if path.suffix in _TEXT and path.is_file())
    whole = torch.tensor(list(b"\n".join(path.read_bytes() for path in files)), dtype=torch.long)
    test = max(len(whole) // 10, most + LATENTS)
    if len(whole) < 2 * test:
        raise UsageError(f"text={folder}: {len(whole)} bytes of text, need {2 * test} for a context of {most}")
    return whole[:-test], whole[-test:]


def copying(context: int, batch: int, draw: torch.Generator) -> Tensor:
    """Sequences `(B,M)` int64 whose second half is the first."""
    half = torch.randint(TOKENS, (batch, context // 2), generator=draw)
    return torch.cat([half, half], 1)


def _copy(context: int, steps: int, seed: int, advance: Callable[..., object]) -> Copied:
    """The prefix grows: first it holds what is to be copied and a few others, at the end it is whole."""
    torch.manual_seed(seed)
    rotating = {"rotary_share": 1.0, "rotary_base": 100.0, "rotary_inclusive": False}
    wide = {"cross_attention_size": 256, "tie_word_embeddings": True, "initializer_range": 0.125}
    model = PerceiverARForCausalLM(_config(TOKENS, context, hidden_size=64, num_hidden_layers=1, **rotating, **wide))
    prefix, half = context - LATENTS, context // 2
    first = min(prefix, 2 * LATENTS)

    def loss_of(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        sequences = copying(context, COPY_BATCH, draw)
        kept = round(first * (prefix / first) ** min(1.0, step / (0.75 * steps)))
        scores = torch.rand(COPY_BATCH, prefix, generator=draw)
        scores[:, half - LATENTS : half + 1] += 1
        model.config.prefix_dropout = 1 - kept / prefix
        return model(sequences, labels=sequences, prefix_scores=scores).loss

    trained = train(model, loss_of, steps, learning_rate=3e-3, weight_decay=0.0, advance=advance)
    draw = torch.Generator().manual_seed(-1 - seed)
    right = []
    for _ in range(COPY_TESTED // COPY_BATCH):
        sequences = copying(context, COPY_BATCH, draw)
        with torch.inference_mode():
            logits = model(sequences, use_cache=False).logits
        right.append(logits[:, :-1].argmax(-1) == sequences[:, 1 - LATENTS :])
    new = min(GENERATED, half - LATENTS)
    start = time.monotonic()
    made = model.generate(sequences[:, :-new], max_new_tokens=new, do_sample=False)
    cached = (time.monotonic() - start) / new
    with torch.inference_mode():
        uncached = statistics.median(timed(lambda: model(sequences, use_cache=False), "cpu") for _ in range(5))
    accuracy, generated = torch.cat(right).float().mean(), (made == sequences)[:, -new:].float().mean()
    of_hundred = 100 * accuracy.item(), 100 * generated.item(), 100 / TOKENS
    return Copied(context, *of_hundred, cached, uncached, trained.loss, trained.minutes)


class SeveralBytes(nn.Module):
    """Each byte embedded with those before it: the sum of a vector for each, by its place among them."""

    def __init__(self, width: int, together: int, initializer_range: float) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(256, width) for _ in range(together))
        for table in self.tables:
            nn.init.normal_(table.weight, std=initializer_range)  # type: ignore[arg-type]

    def forward(self, input_ids: Tensor) -> Tensor:
        """`(B,M)` → `(B,M,C)`."""
        length = input_ids.shape[1]
        shifted = (F.pad(table(input_ids), (0, 0, place, 0))[:, :length] for place, table in enumerate(self.tables))
        return torch.stack(list(shifted)).sum(0)


def _read(
    training: Tensor,
    test: Tensor,
    context: int,
    together: int,
    most: int,
    steps: int,
    seed: int,
    advance: Callable[..., object],
) -> Read:
    torch.manual_seed(seed)
    config = _config(256, most, hidden_size=96, num_hidden_layers=2, rotary_base=float(most))
    model = PerceiverARForCausalLM(config)
    if together > 1:
        model.set_input_embeddings(SeveralBytes(config.embedding_size, together, config.initializer_range))
    seconds: list[float] = []

    def loss_of(step: int) -> Tensor:
        seconds.append(time.monotonic())
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        ends = torch.randint(most, len(training), (READ_BATCH,), generator=draw)  # the same places for all contexts
        sequences = torch.stack([training[end - context : end] for end in ends.tolist()])
        return model(sequences, labels=sequences).loss

    trained = train(model, loss_of, steps, learning_rate=3e-3, weight_decay=0.05, advance=advance)
    ends = torch.linspace(most, len(test), READ_TESTED).long().tolist()
    losses = []
    for some in range(0, READ_TESTED, READ_BATCH):
        sequences = torch.stack([test[end - context : end] for end in ends[some : some + READ_BATCH]])
        with torch.inference_mode():
            logits = model(sequences, use_cache=False).logits[:, :-1]
        losses.append(F.cross_entropy(logits.flatten(0, 1), sequences[:, 1 - LATENTS :].flatten()))
    bits = torch.stack(losses).mean().item() / math.log(2)
    took = [after - before for before, after in itertools.pairwise(seconds)]
    typical = statistics.median(took or [60 * trained.minutes])
    return Read(context, together, bits, forward_flops(model.config, context) / 1e9, typical, trained.minutes)


def _bits_of_frequencies(training: Tensor, test: Tensor) -> float:
    counts = training.bincount(minlength=256) + 1.0
    return -(counts / counts.sum()).log2()[test].mean().item()


def _config(vocab_size: int, most: int, **changes: Any) -> PerceiverARConfig:
    sizes = {"vocab_size": vocab_size, "num_latents": LATENTS, "max_position_embeddings": most}
    return PerceiverARConfig(**{**sizes, "num_attention_heads": 4, "hidden_act": "gelu", **changes})
