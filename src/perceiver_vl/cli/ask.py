"""`perceiver-vl ask`: questions about one clip or image."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from perceiver_vl.cli.options import (
    BudgetOption,
    DeviceOption,
    DtypeOption,
    EndOption,
    FpsOption,
    JsonOption,
    ModelOption,
    SpillOption,
    StartOption,
    ThreadsOption,
    read_budget,
)
from perceiver_vl.cli.show import print_json
from perceiver_vl.models.budget import CostLimit
from perceiver_vl.utils.console import out
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.threads import use_threads


def ask(
    model: ModelOption,
    clip: Annotated[Path, typer.Argument(help="A video or an image.")],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTIONS...", help="One or more, each in quotes.")],
    choices: Annotated[
        str | None,
        typer.Option(help="Answers to choose from, as in 'red|blue|neither'; any matching model can choose."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "--top", min=1, help="Answers to show, of those there are (default: 5).")
    ] = None,
    start: StartOption = None,
    end: EndOption = None,
    fps: FpsOption = None,
    spill: SpillOption = None,
    early_exit: Annotated[
        str | None,
        typer.Option(
            metavar="GFLOPS", help="Leave after the block that is sure enough; evaluate --early-exit has solved when."
        ),
    ] = None,
    budget: BudgetOption = "",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer questions about a clip or an image, with probabilities; a model of captions in words of its own."""
    if not clip.exists():
        raise UsageError(f"{clip}: no such file")
    given = _choices(choices)
    for question in questions:
        if not question.strip():
            raise UsageError("question '': say what to ask, in quotes")
    dials = read_budget(budget, model, device, dtype)
    from perceiver_vl.models.folder import check_model_folder  # light: mistakes are told at once

    check_model_folder(model)
    use_threads(threads)
    from perceiver_vl import pipeline
    from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig

    how: dict[str, Any] = {"start": start, "end": end, "fps": fps, "spill": spill, "budget": dials, "progress": True}
    kinds = PerceiverVLConfig.from_pretrained(model).architectures or []
    if early_exit is not None:
        if budget or "PerceiverVLForQuestionAnswering" not in kinds:
            if budget:
                raise UsageError(
                    f"early_exit={early_exit}: budget={budget} is kept with the thresholds, leave one of them out"
                )
            raise UsageError(f"early_exit={early_exit}: {model} has no set of answers to be sure of, leave it out")
        from perceiver_vl.tasks.early_exit import load_exits

        how["budget"] = load_exits(model, CostLimit.parse(early_exit))
    asked: Any
    if "PerceiverVLForQuestionAnswering" in kinds:
        asked = pipeline("question-answering", model, device, dtype=dtype)
        answers = asked(str(clip), questions, choices=given, top_k=top_k or 5, **how)
    elif {"PerceiverVLForCaptioning", "LanguageBridgeForConditionalGeneration"} & set(kinds):
        for name, value in {"choices": choices, "top_k": top_k}.items():
            if value is not None:
                raise UsageError(f"{name}={value}: {model} answers once, in words of its own, leave it out")
        asked = pipeline("captioning", model, device, dtype=dtype)
        answers = [[said] for said in asked(str(clip), questions, **how)]
    elif given is None:
        raise UsageError(f"{model}: has no answers of its own, give some to choose from: --choices 'yes|no'")
    else:
        asked = pipeline("multiple-choice", model, device, dtype=dtype)
        answers = [asked(str(clip), given, question, **how)[: top_k or 5] for question in questions]
    results = [
        {"question": question, "answers": found, "notes": _notes(question, asked)}
        for question, found in zip(questions, answers, strict=True)
    ]
    if as_json:
        print_json(results)
        return
    for result in results:
        _print_answers(result)


def _notes(question: str, asked: Any) -> list[str]:
    """What of a question the model does not know, or has not read: who answers in words of its own reads half of what
    there is room for.
    """
    from tokenizers import Tokenizer

    from perceiver_vl.inference.captioning import CaptioningPipeline
    from perceiver_vl.search.query_graph import notes_on

    known = asked.processor.tokenizer
    tokenizer = Tokenizer.from_str(known.backend_tokenizer.to_str())
    tokenizer.enable_truncation(known.model_max_length // (2 if isinstance(asked, CaptioningPipeline) else 1))
    return notes_on(question, tokenizer)


def _choices(text: str | None) -> list[str] | None:
    if text is None:
        return None
    choices = [choice.strip() for choice in text.split("|")]
    if len(choices) < 2 or not all(choices) or len(set(choices)) < len(choices):
        raise UsageError(f"choices {text!r}: need at least two different answers, as in 'red|blue|neither'")
    return choices


def _print_answers(result: dict[str, Any]) -> None:
    out.print(result["question"])
    table = Table.grid("probability", "answer", padding=(0, 2))
    for answer in result["answers"]:
        table.add_row(f"{answer['score']:6.3f}", answer["answer"])
    out.print(table)
    for note in result["notes"]:
        out.print(f"note: {note}")
