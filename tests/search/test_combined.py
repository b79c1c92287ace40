"""A query of several parts: one of one text is that text's; weights count; examples alone are compared by vectors."""

from pathlib import Path

import numpy as np
import pytest

from perceiver_vl import UsageError
from perceiver_vl.search import Searcher, build_index
from perceiver_vl.search.combined import combine
from perceiver_vl.search.rows import numbers
from small_media import write_clip


@pytest.fixture(scope="module")
def searcher(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    media, index = tmp_path_factory.mktemp("media"), tmp_path_factory.mktemp("index")
    for number in range(6):
        write_clip(media / f"clip{number}.mp4", seed=number)
    build_index(model_folder, media, index)
    return Searcher(index)


def test_one_text_scores_as_a_search_for_it(searcher: Searcher) -> None:
    rows = searcher.table.rows()
    vectors, partials = numbers(rows["vector"]), numbers(rows["partial_attention"])
    query = combine([(*searcher.queries.encode("a red square"), 1.0)])
    for rerank in ("combined", "mixed", "none"):
        scores, _, _ = query.scores(searcher.queries, vectors, partials, rerank)  # type: ignore[arg-type]
        found = searcher.search("a red square", rerank=rerank)  # type: ignore[arg-type]
        ours = dict(zip(rows["file"].to_pylist(), scores.tolist(), strict=True))
        assert [ours[hit.file_name] for hit in found.hits] == pytest.approx([hit.score for hit in found.hits], abs=1e-5)


def test_weights_scale_logits_and_turn_the_vector(searcher: Searcher) -> None:
    one, other = searcher.queries.encode("a red square"), searcher.queries.encode("a blue circle")
    partials = numbers(searcher.table.rows()["partial_attention"])
    both = combine([(*one, 1.0), (*other, -0.5)])
    expected = searcher.queries.match(partials, one[1]) - 0.5 * searcher.queries.match(partials, other[1])
    np.testing.assert_allclose(both.match(searcher.queries, partials), expected, atol=1e-6)
    turned = one[0] - 0.5 * other[0]
    np.testing.assert_allclose(both.vector, turned / np.linalg.norm(turned), atol=1e-6)
    example = combine([], [(one[0], 2.0)])
    np.testing.assert_allclose(example.vector, one[0], atol=1e-6)
    scores, cosines, mixed = example.scores(searcher.queries, one[0][None], partials[:1], "combined")
    assert mixed is None
    assert scores.tolist() == cosines.tolist() == pytest.approx([1.0], abs=1e-6)


def test_nothing_and_what_cancels_out_are_refused(searcher: Searcher) -> None:
    one = searcher.queries.encode("a red square")
    with pytest.raises(UsageError, match="at least one word or example"):
        combine([])
    with pytest.raises(UsageError, match="cancel each other out"):
        combine([(*one, 1.0), (*one, -1.0)])
