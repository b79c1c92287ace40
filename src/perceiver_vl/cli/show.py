"""Results as people read them, and as programs do."""

import json
import sys
from collections import Counter
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.table import Table

from perceiver_vl.utils.console import err, out, print_whole, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from perceiver_vl.bench.tables import Section
    from perceiver_vl.data.records import SkippedSample
    from perceiver_vl.models.perceiver_vl.original_checkpoint import Conversion
    from perceiver_vl.search import SearchResult
    from perceiver_vl.training.dry_run import DryRun


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print plain values, dataclasses (reports), and all else as strings; on one line without an indent."""

    def plain(other: Any) -> Any:
        return asdict(other) if is_dataclass(other) and not isinstance(other, type) else str(other)

    sys.stdout.write(shown(json.dumps(value, indent=indent, ensure_ascii=False, default=plain)) + "\n")


def print_dry_run(run: "DryRun") -> None:
    """What a training run would be, a line for each thing."""
    table = Table(show_header=False, pad_edge=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    total, memory = sum(run.parameters.values()), run.memory
    parts = ", ".join(f"{part} {count:,}" for part, count in sorted(run.parameters.items()))
    for name, text in (
        ("model", run.model + (f" for {run.task}" if run.task else "")),
        ("parameters", f"{total:,}: {parts}"),
        ("starts fresh", ", ".join(run.fresh)),
        ("an example", f"{run.flops_per_example / 1e9:.3g} GFLOPs forward, about three times that to train"),
        ("steps", f"{run.steps} of {run.examples_per_step} examples ({run.batch} at a time in a process)"),
        (
            "memory",
            f"about {sum(memory.values()) / 1e6:,.0f} MB a process: weights, gradients and moments "
            f"{memory['weights'] / 1e6:,.0f} MB, activations {memory['activations'] / 1e6:,.0f} MB, the program itself "
            f"{memory['program'] / 1e6:,.0f} MB (in main memory, wherever the model is)",
        ),
        *((found.split, f"{found.usable} of {found.clips} clips or examples usable") for found in run.data),
    ):
        if text:
            table.add_row(name, text)
    out.print(table, soft_wrap=False)
    print_skipped(run.skipped)


def print_hits(result: "SearchResult") -> None:
    table = Table(title=f"“{result.query}”", title_justify="left")
    for column in ("", "file", "score", "multi_score", "mixed_score", "seconds", "caption"):
        justify: Literal["left", "right"] = "left" if column in ("file", "caption") else "right"
        table.add_column(column, justify=justify, overflow="fold")  # a name that is cut short cannot be opened
    for hit in result.hits:
        match = "" if hit.mixed_score is None else f"{hit.mixed_score:.2f}"
        duration = "" if hit.duration is None else f"{hit.duration:.1f}"
        caption = hit.texts[0] if hit.texts else ""
        table.add_row(
            str(hit.rank), hit.file_name, f"{hit.score:.2f}", f"{hit.multi_score:.3f}", match, duration, caption
        )
    print_whole(table)
    for note in result.notes:
        out.print(f"note: {note}")
    total = 1e3 * result.seconds["total"]
    recall = "" if result.recall is None else f", recall of the shortlist against exact search {result.recall:.3f}"
    out.print(f"{result.searched} clips searched in {total:.1f} ms ({result.method}{recall})")


def print_conversion(conversion: "Conversion") -> None:
    """What was loaded, left and starts fresh, by parts instead of by tensors."""
    table = Table(title="tensors")
    for column in ("", "of the checkpoint", "in the model", "tensors"):
        table.add_column(column, justify="right" if column == "tensors" else "left", overflow="fold")
    loaded = Counter((_part(theirs), _part(ours)) for ours, theirs in conversion.loaded.items())
    left = Counter((theirs.split(".")[0], why) for theirs, why in conversion.left.items())
    for (theirs, ours), count in loaded.items():
        table.add_row("loaded", theirs, ours, str(count))
    for (theirs, why), count in sorted(left.items()):
        table.add_row("left", theirs, why, str(count))
    for ours, count in Counter(_part(name) for name in conversion.fresh).items():
        table.add_row("fresh", "", ours, str(count))
    out.print(table)


def _part(name: str) -> str:
    """The part that a tensor belongs to: its name's first words, with the kind of attention."""
    words = [word for word in name.removeprefix("perceiver_vl.").split(".") if not word.isdigit()]
    return ".".join(words[: 3 if "cross_attention" in words or "self_attentions" in words else 2])


def print_skipped(skipped: "list[SkippedSample]", most: int = 20) -> None:
    """Files that were left out, in a list at the end."""
    if not skipped:
        return
    err.print(f"skipped {len(skipped)} files:")
    for sample in skipped[:most]:
        err.print(f"  {sample}")
    if len(skipped) > most:
        err.print(f"  … and {len(skipped) - most} more (all of them with --json)")


def print_damaged(names: list[str]) -> None:
    """How many files lacked frames, and the first of them."""
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        err.print(f"damaged, used as far as they go: {', '.join(names[:3])}{more}")


def print_bench(report: Any, as_json: bool, sentences: "Iterable[str]" = (), repeats: str = "") -> None:
    """A report of a bench as JSON, or its tables, what they come to in words, and what it takes to get them again.
    repeats: how often it was measured, in words, where that is not in interleaved runs from one seed.
    """
    if as_json:
        print_json(report.to_dict())
        return
    for section in report.sections():
        print_section(section)
    for sentence in sentences:
        out.print(sentence, soft_wrap=False)
    repeats = repeats or f"{report.runs} interleaved runs, seed {report.seed}"
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    out.print(f"{report.command}; {repeats}; {report.machine}; {versions}")


def print_section(section: "Section") -> None:
    """A table of a bench, at most 80 columns wide, and its notes."""
    table = Table(
        title=section.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False
    )
    for number, column in enumerate(section.columns):
        table.add_column(column, justify="right" if number else "left")
    for row in section.rows:
        table.add_row(*row)
    out.print(table, soft_wrap=False)
    for note in section.notes:
        out.print(note, style="dim", soft_wrap=False)
    out.print()
