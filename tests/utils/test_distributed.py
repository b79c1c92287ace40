"""Several processes are one: what they learn from a batch that they share, how they evaluate, how they go on."""

import json
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import several_processes
from launching import in_processes
from perceiver_vl.data.batching import EpochSampler, SharedBatches
from perceiver_vl.utils.distributed import GlobalBatch, ProcessGroup, global_batches

Ran = tuple[dict[str, Tensor], dict[str, object]]
IN_FLOAT32 = {("float32", kind) for kind in ("loss", "gradient", "weight")} | {("Muon, sharded", "weight")}


@pytest.fixture(scope="module")
def alone() -> Ran:
    return several_processes.found(), several_processes.scores()


@pytest.fixture(scope="module", params=[2, 3])
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("several")
    in_processes(request.param, "several_processes.py", folder)
    scores = json.loads((folder / f"scores-{request.param}.json").read_text())
    return load_file(folder / f"found-{request.param}.safetensors"), scores


def test_losses_gradients_and_steps_are_those_of_one_process(alone: Ran, several: Ran) -> None:
    """Of every objective and of all, in chunks, with an uneven batch, with nothing for one of them, sharded (FSDP2)."""
    one, many = alone[0], several[0]
    assert one.keys() == many.keys()
    cases = {name.split(": ")[0] for name in one}
    assert {
        "vtc of 7",
        "vtc of 7, weighed and mixed",
        "structure of 7",
        "mixed_vtc of 7",
        "all of 7, in chunks",
        "all of 2",
        "sharded",
        "Muon, sharded",
        "elastic",
    } < cases
    for case in cases:
        for kind in ("loss", "gradient", "weight"):
            names = [name for name in one if name.startswith(f"{case}: {kind}")]
            largest = max((float(one[name].abs().max()) for name in names), default=0.0)
            assert largest > 0 or (case, kind) == ("elastic", "weight")
            tolerance = largest * (1e-5 if (case, kind) in IN_FLOAT32 else 1e-12)
            for name in names:
                torch.testing.assert_close(
                    many[name], one[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
                )


def test_chunks_and_shards_change_nothing(alone: Ran) -> None:
    found = alone[0]
    for name in [name for name in found if name.startswith("all of 7: ")]:
        chunked = found[name.replace("all of 7", "all of 7, in chunks")]
        torch.testing.assert_close(chunked, found[name], rtol=0, atol=1e-9)


def test_evaluations_are_those_of_one_process(alone: Ran, several: Ran) -> None:
    one, many = alone[1], several[1]
    assert one == many
    assert one.keys() == {"retrieval", "task", "strict", "too many"}


# --- Who has what ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize(("length", "drop_last"), [(24, True), (23, True), (23, False), (18, False)])
def test_the_parts_of_a_batch_are_the_batch_and_alike_in_size(processes: int, length: int, drop_last: bool) -> None:
    whole = list(SharedBatches(EpochSampler(length, 0), 8, 0, 1, drop_last))
    of_each = [SharedBatches(EpochSampler(length, 0), 8, rank, processes, drop_last) for rank in range(processes)]
    assert (
        [len(one) for one in of_each]
        == [len(whole)] * processes
        == [length // 8 if drop_last else -(-length // 8)] * processes
    )
    for number, parts in enumerate(zip(*of_each, strict=True)):
        real = [[item for item in part if item >= 0] for part in parts]
        assert [item for part in real for item in part] == whole[number]
        sizes = [len(part) for part in real]
        assert max(sizes) - min(sizes) <= 1
        assert all(part == [~whole[number][0]] for part, own in zip(parts, real, strict=True) if not own)
    assert sorted(item for batch in whole for item in batch)[: 8 * len(whole)] == sorted(
        list(EpochSampler(length, 0))[: 8 * len(whole)]
    )


def test_a_process_alone_needs_no_others() -> None:
    [whole] = global_batches([5], torch.device("cpu"))
    assert (whole.sizes, whole.total, whole.places.tolist()) == ((5,), 5, [0, 1, 2, 3, 4])
    rows = torch.randn(5, 2)
    assert whole.rows(rows) is rows
    group, say = ProcessGroup(shared=True), list(range(3))
    assert group.share(say) == say
    work: Callable[[], int] = lambda: 7  # noqa: E731
    assert group.of_all(work) == [7]


def test_places_and_pieces_are_those_of_all_processes() -> None:
    whole = GlobalBatch((2, 0, 3), rank=2)
    assert whole.places.tolist() == [2, 3, 4]
    assert GlobalBatch((2, 0, 3), rank=1).places.tolist() == []
    assert [whole.pieces(most) for most in (None, 1, 2, 3, 9)] == [1, 3, 2, 1, 1]
    assert whole.marked(torch.tensor([True, False, True, True, False])).sizes == (1, 0, 2)
    assert whole.mean_of(whole.total) == 5 / 3
