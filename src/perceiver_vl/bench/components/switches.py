"""The switches that are compared, each as it is typed behind a recipe, with the work that it is of.

Off is the paper's model at the size of the small recipes (`recipes/world.yaml`, `recipes/world_questions.yaml`), or
these recipes as they are, whose own switches are turned off instead.
docs/related-work.md says what each of these works is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    is_baseline: it is none, but the baseline at another size. off: where the small recipes have it, what turns it off
    there.
    """

    name: str
    system: str
    idea: str
    overrides: tuple[str, ...]
    trials: tuple[str, ...] = EVERYWHERE
    claim: str = ""
    is_baseline: bool = False
    off: tuple[str, ...] = ()

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
        off=("model.patch_stem=linear",),
    ),
    Switch(
        "patch-norm",
        "Kumar et al. 2023",
        "patches are normed before their places are added",
        ("model.patch_norm=true",),
        WORLD,
        "norms before and after the patch projection helped or did no harm (ImageNet, ViT of base size and others)",
        off=("model.patch_norm=false",),
    ),
    Switch(
        "sincos-positions",
        "Vaswani et al. 2017",
        "tables of places and times begin as sines and cosines",
        ("model.sincos_positions=0.5",),
        WORLD,  # over encoders a model begins with tables that `init` has made
        off=("model.sincos_positions=null",),
    ),
    Switch(
        "temporal-kernel",
        "Tran et al. 2018",
        "tokens of one place are mixed over seven frames",
        ("model.temporal_kernel=7",),
        (RETRIEVAL, REAL_RETRIEVAL),
        off=("model.temporal_kernel=0",),
    ),
    Switch(
        "soft-split",
        "T2T-ViT (Yuan et al. 2021)",
        "patches overlap and are thought about before they are tokens",
        ("model.patch_stem=soft_split",),
        WORLD,
        "soft splits gained over 3 points beside ViT (ImageNet, 21.5 million parameters)",
    ),
    Switch(
        "two-patch-sizes",
        "CrossViT (Chen et al. 2021)",
        "coarse patches beside the fine ones in one input array",
        ("model.coarse_patch_size=16",),
        WORLD,
        "two sizes in two branches gained 2 points beside DeiT (ImageNet; there the branches exchange class tokens)",
    ),
    Switch(
        "tubelets",
        "ViViT (Arnab et al. 2021)",
        "a token sees a patch of two frames",
        ("model.tubelet_size=2",),
        (RETRIEVAL,),
    ),
    # Weights and reading
    Switch(
        "untied-modalities",
        "MoT (Liang et al. 2024), MM-DiT (Esser et al. 2024)",
        "clip and words have keys, values and norms of their own",
        ("model.untied_modalities=true",),
        EVERYWHERE,
        "weights of each modality came to the same loss with 56 % of the operations (7 billion parameters, generation; "
        "there MLPs are untied, too)",
    ),
    Switch(
        "layer-scale",
        "CaiT (Touvron et al. 2021)",
        "what attentions and MLPs add is weighed, at first by a tenth",
        ("model.layer_scale=0.1",),
        EVERYWHERE,
        "layer scale helped transformers of 18 layers and more (ImageNet)",
    ),
    Switch(
        "qk-norm",
        "MM-DiT (Esser et al. 2024)",
        "queries and keys of cross-attentions are normed",
        ("model.qk_norm=true",),
        EVERYWHERE,
        off=("model.qk_norm=false",),
    ),
    Switch(
        "conditional-experts",
        "Uni-Perceiver-MoE (Zhu et al. 2022)",
        "clips, words and both choose two of four weights in every other self-attention",
        ("model.num_experts=4",),
        EVERYWHERE,
        "experts that attributes of the task choose took away what tasks lost by being learned at once (base and large "
        "size, many tasks; there tokens are routed by their modality, too)",
    ),
    Switch(
        "text-first",
        "docs/learning.md",
        "latents read the words before the clip",
        ("model.modality_aggregation=text_first",),
        (QUESTIONS, REAL_QUESTIONS),
        off=("model.modality_aggregation=joint",),
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
    Switch(
        "merged-patches",
        "ToMe (Bolya et al. 2023), MAELRE (2025)",
        "the most alike patches of a frame are merged, a half is left",
        ("model.merged_patches=32",),
        WORLD,
        "merging doubled the throughput for 0.2 to 0.3 points (ImageNet, ViT-L and H)",
    ),
    Switch(
        "text-guided-tokens",
        "Recoverable Compression (Chen et al. 2024)",
        "the words choose the half of the tokens that is read",
        ("model.text_guided_tokens=64",),
        (QUESTIONS,),
        "a tenth of the tokens, chosen by the words, answered about as well (multimodal language models, untrained)",
    ),
    Switch(
        "sampled-points",
        "Dynamic MDETR (Shi et al. 2022)",
        "latents choose 16 points a frame after their first reading",
        ("model.sampled_points=16",),
        WORLD,
        "9 % of the points, chosen, did better than all, at 44 % fewer operations of the part that fuses (grounding)",
    ),
    Switch(
        "routed-regions",
        "BiFormer (Zhu et al. 2023)",
        "latents choose 4 of 16 regions a frame after their first reading",
        ("model.routed_regions=4",),
        WORLD,
        "routed regions were ahead at equal operations (ImageNet, COCO)",
    ),
    Switch(
        "rolled-tokens",
        "All-in-one (Wang et al. 2022)",
        "a quarter of each frame's patches are its neighbours'",
        ("model.rolled_tokens=0.25",),
        (RETRIEVAL, REAL_RETRIEVAL),
        "rolling brought one transformer of single frames to the best of nine sets (base size, millions of clips)",
    ),
    Switch(
        "rolled-channels",
        "TSM (Lin et al. 2019)",
        "an eighth of each patch's channels are its neighbours'",
        ("model.rolled_channels=0.125",),
        (RETRIEVAL, REAL_RETRIEVAL),
    ),
    Switch(
        "frame-summaries",
        "Combiner (Ren et al. 2021)",
        "of two frames one is read whole, the other as one token",
        ("model.frame_summaries=2",),
        (RETRIEVAL, REAL_RETRIEVAL),
        "summaries in the place of far tokens lost nothing (texts and images as sequences)",
    ),
    # Losses and training
    Switch(
        "muon",
        "Jordan et al. 2024",
        "matrices learn by orthogonal steps",
        ("optimizer=muon",),
        EVERYWHERE,
        "came to AdamW's loss in about half of its FLOPs (language models, Liu et al. 2025)",
        off=("optimizer=adamw",),
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
        "momentum",
        "ALBEF (Li et al. 2021), MoCo (He et al. 2020)",
        "the contrast is with what a slow copy says, now and of 512 earlier pairs",
        ("objectives.vtc=0", "objectives.momentum=1", "objectives.queue_size=512"),
        (RETRIEVAL, REAL_RETRIEVAL),
        "momentum distillation helped every task that was tried (4 million images of the web, base size)",
    ),
    Switch(
        "masked-patches",
        "MoCa (Chen et al. 2025)",
        "three quarters of the patches are masked and told",
        ("objectives.mpm=0.3", "model.masked_patches=true"),
        (RETRIEVAL,),
        "reconstruction before the contrast helped embeddings (billions of parameters; in turn and not at once)",
    ),
    Switch(
        "token-subsets",
        "4M (Mizrahi et al. 2023)",
        "a quarter of the masked patches is asked for",
        ("objectives.mpm=0.3", "objectives.mpm_targets=0.25", "model.masked_patches=true"),
        (RETRIEVAL,),
    ),
    Switch(
        "objectives-in-turn",
        "IMP (Akbari et al. 2023)",
        "a step asks one objective",
        ("objectives.alternate=true",),
        (RETRIEVAL,),
        "one task a step did better than all in each (image, video, sound and text at once, hundreds of millions of "
        "parameters)",
    ),
    Switch(
        "one-way",
        "M3-JEPA (Cheng et al. 2025)",
        "a step aligns texts to clips or clips to texts",
        ("objectives.vtc_directions=alternate",),
        (RETRIEVAL, REAL_RETRIEVAL),
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


def beside_recipes() -> list[Switch]:
    """What can be tried beside the small recipes as they are: leaving out what they have, adding what they have not."""
    return [
        replace(one, name=f"without-{one.name}", idea=f"without: {one.idea}", overrides=one.off, trials=WORLD, claim="")
        if one.off
        else one
        for one in SWITCHES
    ]


def choose_switches(names: Sequence[str], switches: Sequence[Switch] = SWITCHES) -> list[Switch]:
    """Those of these names, all where there are none; `a+b` is one that turns on both.

    Raises `UsageError` for a name that there is not, and for two that set the same.
    """
    known = {switch.name: switch for switch in switches}

    def one(name: str) -> Switch:
        if name not in known:
            raise UsageError(f"only={name}: unknown, {did_you_mean(name, known)}")
        return known[name]

    return [reduce(together, map(one, name.split(TOGETHER))) for name in names] or list(switches)


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
