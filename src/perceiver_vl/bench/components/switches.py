"""The switches that are compared, each as it is typed behind a recipe, with the work that it is of.

Off is what the small recipes have (`recipes/world.yaml`, `recipes/world_questions.yaml`). docs/related-work.md says
what each of these works is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.text import did_you_mean

RETRIEVAL, QUESTIONS = "retrieval", "questions"
REAL_RETRIEVAL, REAL_QUESTIONS = "encoders-retrieval", "encoders-questions"
WORLD, REAL = (RETRIEVAL, QUESTIONS), (REAL_RETRIEVAL, REAL_QUESTIONS)
EVERYWHERE = (*WORLD, *REAL)
TOGETHER = "+"


@dataclass(frozen=True)
class Switch:
    """One idea. overrides: of a recipe, `key=value`, which turn it on; trials: what it can be tried on; claim: what its
    paper found, with its conditions, which what comes out here is held against (empty: nothing of the kind).
    is_baseline: it is none, but the baseline at another size.
    """

    name: str
    system: str
    idea: str
    overrides: tuple[str, ...]
    trials: tuple[str, ...] = EVERYWHERE
    claim: str = ""
    is_baseline: bool = False

    @property
    def keys(self) -> set[str]:
        """What it sets."""
        return {override.partition("=")[0] for override in self.overrides}


SWITCHES: tuple[Switch, ...] = (
    # Tokenisers
    Switch(
        "convolutional-stem",
        "Xiao et al. 2021",
        "several convolutions make the patches",
        ("model.patch_stem=convolutional",),
        WORLD,
        "convolutions in the place of the patch projection gained 1 to 2 points at equal FLOPs (ImageNet, ViT of 1 to "
        "36 GFLOPs)",
    ),
    Switch(
        "patch-norm",
        "Kumar et al. 2023",
        "patches are normed before their places are added",
        ("model.patch_norm=true",),
        WORLD,
        "norms before and after the patch projection helped or did no harm (ImageNet, ViT of base size and others)",
    ),
    Switch(
        "sincos-positions",
        "Vaswani et al. 2017",
        "tables of places and times begin as sines and cosines",
        ("model.sincos_positions=0.5",),
        EVERYWHERE,
    ),
    Switch(
        "temporal-kernel",
        "Tran et al. 2018",
        "tokens of one place are mixed over seven frames",
        ("model.temporal_kernel=7",),
        (RETRIEVAL, REAL_RETRIEVAL),
    ),
    # Weights and reading
    Switch(
        "qk-norm",
        "MM-DiT (Esser et al. 2024)",
        "queries and keys of cross-attentions are normed",
        ("model.qk_norm=true",),
        EVERYWHERE,
    ),
    Switch(
        "text-first",
        "docs/learning.md",
        "latents read the words before the clip",
        ("model.modality_aggregation=text_first",),
        (QUESTIONS, REAL_QUESTIONS),
    ),
    Switch(
        "separate",
        "Perceiver-VL (Tang et al. 2023)",
        "a cross-attention to the clip, then one to the words",
        ("model.modality_aggregation=separate",),
        (QUESTIONS, REAL_QUESTIONS),
        "a cross-attention each was level with a joint one (Figure 3; base size, fine-tuned on MSRVTT)",
    ),
    Switch(
        "layer-drop",
        "Perceiver-VL (Tang et al. 2023)",
        "half of the cross-attentions but the first are dropped",
        ("model.layer_drop=0.5",),
        EVERYWHERE,
        "dropping cross-attentions in training cost nothing at the full number (Table 3; base size)",
    ),
    # Fewer keys
    Switch(
        "drop-token",
        "VATT (Akbari et al. 2021)",
        "half of the tokens are left out of a second pass of each step",
        ("elastic.tokens=0.5", "elastic.smallest=false", "elastic.distill=0"),
        WORLD,
        "half of the tokens in training kept most of the accuracy at about half the cost (Kinetics, base size; there "
        "the whole array is not trained beside)",
    ),
    # Losses and training
    Switch(
        "muon",
        "Jordan et al. 2024",
        "matrices learn by orthogonal steps",
        ("optimizer=muon",),
        EVERYWHERE,
        "came to AdamW's loss in about half of its FLOPs (language models, Liu et al. 2025)",
    ),
    Switch(
        "hard-negatives",
        "ALBEF (Li et al. 2021)",
        "matching meets the likeliest wrong clips",
        ("objectives.hard_negatives=true",),
        (RETRIEVAL,),
        "hard negatives helped matching (4 million images, base size, from pretrained encoders)",
    ),
    Switch(
        "focal-weights",
        "KaLM-Embedding-V2 (Zhao et al. 2025)",
        "pairs that are told apart already count less",
        ("objectives.focal_gamma=0.5",),
        (RETRIEVAL, REAL_RETRIEVAL),
        "focal weights were part of what beat others of its size (texts, half a billion parameters, fine-tuned)",
    ),
    Switch(
        "mixed-negatives",
        "KaLM-Embedding-V2 (Zhao et al. 2025)",
        "harder negatives are mixed of the hardest",
        ("objectives.mixed_negatives=8",),
        (RETRIEVAL, REAL_RETRIEVAL),
        "mixed negatives were part of what beat others of its size (texts, half a billion parameters, fine-tuned)",
    ),
    Switch(
        "structure",
        "STRUCTURE (Gröger et al. 2025)",
        "neighbours in each frozen encoder stay neighbours",
        ("objectives.structure=10",),
        (REAL_RETRIEVAL,),
        "keeping neighbourhoods, and the right layers, gained 92 % of retrieval in relation (24 benchmarks, frozen "
        "encoders, tens of thousands of pairs)",
    ),
    Switch(
        "masked-words",
        "MoCa (Chen et al. 2025)",
        "masked words are told beside the contrast",
        ("objectives.mlm=0.3",),
        (RETRIEVAL,),
        "reconstruction before the contrast helped embeddings (billions of parameters; words and pictures, in turn and "
        "not at once)",
    ),
    Switch(
        "answers-as-text",
        "Uni-Perceiver (Zhu et al. 2022)",
        "answers are texts that are encoded and compared",
        ("model.answers_as_text=true",),
        (QUESTIONS,),
    ),
)


def choose_switches(names: Sequence[str]) -> list[Switch]:
    """Those of these names, all where there are none; `a+b` is one that turns on both.

    Raises `UsageError` for a name that there is not, and for two that set the same.
    """
    known = {switch.name: switch for switch in SWITCHES}

    def one(name: str) -> Switch:
        if name not in known:
            raise UsageError(f"only={name}: unknown, {did_you_mean(name, known)}")
        return known[name]

    return [reduce(together, map(one, name.split(TOGETHER))) for name in names] or list(SWITCHES)


def together(first: Switch, second: Switch) -> Switch:
    """Both at once; `UsageError` where they set the same, or share no trial."""
    name = first.name + TOGETHER + second.name
    if both := first.keys & second.keys:
        raise UsageError(f"only={name}: both set {min(both)}, leave one of them out")
    trials = tuple(trial for trial in first.trials if trial in second.trials)
    if not trials:
        raise UsageError(f"only={name}: no task is for both, leave one of them out")
    idea = "together"
    return Switch(name, f"{first.system}; {second.system}", idea, first.overrides + second.overrides, trials)
