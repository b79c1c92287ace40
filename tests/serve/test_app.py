"""The interface: what is promised is there, answers as it says, and refuses in one line."""

import base64
import json
import re
import struct
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from starlette.testclient import TestClient

from perceiver_vl.search import Searcher
from perceiver_vl.search.moments import MomentOptions
from small_service import MARKUP, id_of, opened, post, problem, service_of

QUERY = "a red square moves left"


# --- Searches ---------------------------------------------------------------------------------------------------------


def test_a_search_finds_what_the_command_line_does(api: TestClient, served: tuple[Path, Path]) -> None:
    found = post(api, "/v1/search", query=QUERY, top=5, group=False)
    expected = Searcher(served[0]).search(QUERY, top_k=5)
    assert [hit["file"] for hit in found["hits"]] == [hit.file_name for hit in expected.hits]
    for name in ("score", "multi_score", "mixed_score"):
        assert [hit[name] for hit in found["hits"]] == pytest.approx(
            [getattr(hit, name) for hit in expected.hits], 1e-4
        )
    assert found["method"] == "exact"
    assert found["searched"] == 8
    assert found["understood"] == {"texts": [{"text": QUERY, "weight": 1.0}], "filters": {}}
    assert {"queue", "encode", "shortlist", "rerank", "total"} <= set(found["seconds"])
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3, 4, 5]
    assert all(
        (hit["start"], hit["end"]) == (0.0 if hit["duration"] else None, hit["duration"]) for hit in found["hits"]
    )


def test_moments_are_those_of_the_command_line(api: TestClient, served: tuple[Path, Path]) -> None:
    found = post(api, "/v1/moments", query=QUERY, top=6, group=False)
    expected = Searcher(served[0]).moments(QUERY, MomentOptions(top_k=6))
    assert [(hit["file"], hit["start"], hit["end"]) for hit in found["hits"]] == [
        (one.file_name, one.start, one.end) for one in expected.moments
    ]
    assert [hit["score"] for hit in found["hits"]] == pytest.approx([one.score for one in expected.moments], 1e-4)
    of_first = found["curves"][found["hits"][0]["id"]]
    assert of_first[0]["start"] == 0.0
    assert found["found"] is None  # never calibrated


def test_typed_filters_are_taken(api: TestClient) -> None:
    for query, files in {
        "a folder:trip": {f"trip/{MARKUP}.mp4", "trip/copy of 1.mp4"},
        "a type:image": {"picture0.png", "picture1.png"},
        'a caption:"first SNOW"': {"clip0.mp4"},
        "a caption:100%": {"clip0.mp4"},
        "a longer:4.5": {"clip3.mp4"},
        "a before:2001": set(),
    }.items():
        found = post(api, "/v1/search", query=query, top=20, group=False)
        assert {hit["file"] for hit in found["hits"]} == files
        assert len(found["understood"]["filters"]) == 1
    assert {hit["file"] for hit in post(api, "/v1/moments", query="a caption:snow")["hits"]} == {"clip0.mp4"}
    assert post(api, "/v1/moments", query="a before:2001")["hits"] == []
    given = post(api, "/v1/search", query="a", folder="trip", group=False)
    assert given["understood"]["filters"] == {"folder": "trip"}
    assert len(given["hits"]) == 2


def test_near_duplicates_are_one_hit(api: TestClient) -> None:
    hits = post(api, "/v1/search", query=QUERY, top=20)["hits"]
    alike = {hit["file"]: [one["file"] for one in hit["alike"]] for hit in hits}
    pair = {"clip1.mp4", "trip/copy of 1.mp4"}
    assert len(pair & set(alike)) == 1
    assert any({name, *others} >= pair for name, others in alike.items())
    everything = post(api, "/v1/search", query=QUERY, top=20, alike=-1)["hits"]
    assert len(everything) == 1
    assert len(everything[0]["alike"]) == 7
    moments = post(api, "/v1/moments", query=QUERY, top=50, per_video=50)["hits"]
    assert not pair <= {hit["file"] for hit in moments}


def test_words_to_leave_out_push_away_what_they_name(api: TestClient) -> None:
    """In the limit of their weight, the order is the reverse of theirs."""
    wanted = [
        hit["file"]
        for hit in post(api, "/v1/search", query="a blue circle", top=20, group=False, rerank="none")["hits"]
    ]
    without = post(api, "/v1/search", query='-"a blue circle"', top=20, group=False, rerank="none")
    assert [hit["file"] for hit in without["hits"] if "1.mp4" not in hit["file"]] == [
        name for name in wanted[::-1] if "1.mp4" not in name
    ]
    assert without["understood"]["texts"] == [{"text": "a blue circle", "weight": -0.5}]


def test_more_like_this(api: TestClient) -> None:
    one = id_of(api, "clip2.mp4")
    hits = post(api, "/v1/search", like=[{"id": one}], top=3)["hits"]
    assert hits[0]["file"] == "clip2.mp4"
    assert hits[0]["score"] == pytest.approx(1.0, abs=1e-5)
    both = post(api, "/v1/search", query="a blue circle", like=[{"id": one, "weight": 0.5}])
    assert both["hits"][0]["mixed_score"] is not None


def test_by_date_the_newest_is_first(api: TestClient) -> None:
    times = [hit["created"] for hit in post(api, "/v1/search", query=QUERY, top=20, sort="date")["hits"]]
    assert times == sorted(times, reverse=True)


def test_a_batch_answers_each(api: TestClient) -> None:
    asked = [{"query": QUERY, "top": 1}, {"query": "a blue circle", "top": 2}]
    results = post(api, "/v1/search/batch", requests=asked)["results"]
    assert [len(one["hits"]) for one in results] == [1, 2]
    assert results[1]["hits"] == post(api, "/v1/search", **asked[1])["hits"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "query '': need at least one word or example"),
        ({"query": "a", "topp": 3}, "unknown key 'topp', did you mean top?"),
        ({"query": 3}, "query=3: need text"),
        ({"query": "a", "top": 0}, "top: 0, need at least 1"),
        ({"query": "a", "top": True}, "top=True: need a whole number"),
        ({"query": "a", "top": 10**6}, "at most 200"),
        ({"query": "a" * 3000}, "at most 2000"),
        ({"query": "a", "type": "sound"}, "choose video or image"),
        ({"query": "a before:soon"}, "before=soon: not a day or time"),
        ({"query": "a type:video", "type": "video"}, "type: is both typed and given"),
        ({"query": "a", "index": "other"}, "index=other: none of index"),
        ({"query": "a", "like": [{"weight": 1}]}, "id is missing"),
        ({"query": "a", "like": {}}, "like={}: need a list"),
        ({"query": "a", "longer": float("1e300")}, "need a number"),
        ([], "request: need an object"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(asked: Any, says: str, api: TestClient) -> None:
    assert says in problem(api.post("/v1/search", json=asked), 400)


def test_what_is_no_json_or_too_long_is_refused(api: TestClient) -> None:
    assert "not JSON" in problem(api.post("/v1/search", content=b"{"), 400)
    assert "not JSON" in problem(api.post("/v1/search", content=b"[" * 100_000), 400)
    assert "not JSON" in problem(api.post("/v1/search", content=b"\xff\xfe"), 400)
    problem(api.post("/v1/search", content=b" " * (2 << 20)), 413)
    problem(api.post("/v1/search", content=b'{"query": "a", "longer": NaN}'), 400)
    problem(api.get("/v1/search"), 405)
    problem(api.get("/v1/nothing"), 404)


def test_unknown_words_are_noted(api: TestClient) -> None:
    assert "does not know" in post(api, "/v1/search", query="象")["notes"][0]


# --- Questions, vectors, attention ------------------------------------------------------------------------------------


def test_a_second_question_about_a_clip_does_not_read_it_again(api: TestClient) -> None:
    asked = {"id": id_of(api, "clip0.mp4"), "question": "what is it?", "choices": ["a red square", "a blue circle"]}
    first = post(api, "/v1/ask", **asked, start=0.5)
    again = post(api, "/v1/ask", **{**asked, "question": "what moves?"}, start=0.5)
    assert (first["cached"], again["cached"]) == (False, True)
    assert first["seconds"]["read"] > 0 == again["seconds"]["read"]
    assert sum(one["score"] for one in first["answers"]) == pytest.approx(1)
    assert post(api, "/v1/ask", **asked, start=0.5)["answers"] == first["answers"]
    cheap = post(api, "/v1/ask", **asked, budget="frames=2,latents=3")
    assert cheap["budget"] == "frames=2,latents=3"
    assert not cheap["cached"]


def test_a_question_that_cannot_be_answered_is_refused(api: TestClient) -> None:
    clip = id_of(api, "clip0.mp4")
    assert "give choices" in problem(api.post("/v1/ask", json={"id": clip, "question": "what?"}), 400)
    two = {"question": "what?", "choices": ["a", "b"]}
    assert "unknown dial" in problem(api.post("/v1/ask", json={"id": clip, **two, "budget": "speed=3"}), 400)
    problem(api.post("/v1/ask", json={"id": "0" * 32, **two}), 404)
    assert "nothing is shown" in problem(api.post("/v1/ask", json={"id": clip, **two, "start": 99}), 422)


def test_vectors_of_texts_and_clips(api: TestClient) -> None:
    clip = id_of(api, "clip0.mp4")
    plain = post(api, "/v1/embed", texts=[QUERY, "a"], ids=[clip])
    packed = post(api, "/v1/embed", texts=[QUERY, "a"], ids=[clip], encoding="base64")
    assert plain["size"] == 16
    for name in ("texts", "ids"):
        for vector, written in zip(plain[name], packed[name], strict=True):
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
            assert struct.unpack("<16f", base64.b64decode(written)) == pytest.approx(vector)
    hit = next(hit for hit in post(api, "/v1/search", query=QUERY, top=20)["hits"] if hit["id"] == clip)
    assert np.dot(plain["texts"][0], plain["ids"][0]) == pytest.approx(hit["multi_score"], abs=1e-5)
    theirs = post(api, "/v1/embeddings", input=[QUERY, "a"], model="any")
    assert theirs["object"] == "list"
    assert [one["index"] for one in theirs["data"]] == [0, 1]
    assert theirs["data"][0]["embedding"] == plain["texts"][0]
    one = post(api, "/v1/embeddings", input=QUERY, model="any", encoding_format="base64")
    assert one["data"][0]["embedding"] == packed["texts"][0]
    problem(api.post("/v1/embeddings", json={"input": "a", "dimensions": 3}), 400)
    problem(api.post("/v1/embed", json={}), 400)
    problem(api.post("/v1/embed", json={"ids": ["../../etc"]}), 404)


def test_where_the_model_looked(api: TestClient) -> None:
    answer = api.get(f"/v1/clips/{id_of(api, 'clip3.mp4')}/look", params={"query": "a red square", "start": 1})
    looked = answer.json()
    assert (looked["rows"], looked["columns"]) == (2, 2)
    assert len(looked["grid"]) == len(looked["seconds"]) == 4
    assert looked["seconds"][0] >= 1
    assert sum(map(sum, looked["grid"])) == pytest.approx(1, abs=1e-4)
    other = api.get(f"/v1/clips/{id_of(api, 'clip3.mp4')}/look", params={"query": "a blue circle", "start": 1}).json()
    assert other["grid"] != looked["grid"]


# --- Clips and files --------------------------------------------------------------------------------------------------


def test_a_clip_says_what_it_is(api: TestClient, served: tuple[Path, Path]) -> None:
    clip = api.get(f"/v1/clips/{id_of(api, 'clip1.mp4')}").json()
    assert sorted(clip["files"]) == ["clip1.mp4", "trip/copy of 1.mp4"]
    assert (clip["width"], clip["height"], clip["duration"], clip["plays"]) == (80, 48, 3.0, "stream")
    assert api.get(f"/v1/clips/{id_of(api, 'picture0.png')}").json()["plays"] is None
    problem(api.get(f"/v1/clips/{'0' * 32}"), 404)


def test_media_are_served_in_ranges(api: TestClient, served: tuple[Path, Path]) -> None:
    where, whole = f"/v1/media/{id_of(api, 'clip2.mp4')}", (served[1] / "clip2.mp4").read_bytes()
    answer = api.get(where)
    assert answer.content == whole
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["accept-ranges"] == "bytes"
    part = api.get(where, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    assert api.get(where, headers={"Range": "bytes=-5"}).content == whole[-5:]
    assert api.get(where, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416
    assert api.get(f"/v1/media/{id_of(api, 'picture1.png')}").headers["content-type"] == "image/png"


def test_a_filmstrip_is_one_picture_and_kept(api: TestClient) -> None:
    where = f"/v1/clips/{id_of(api, 'clip2.mp4')}/strip"
    answer = api.get(where, params={"frames": 3, "start": 1, "end": 2})
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.content[:2] == b"\xff\xd8"
    same = api.get(where, params={"frames": 3, "start": 1, "end": 2}, headers={"If-None-Match": answer.headers["etag"]})
    assert same.status_code == 304
    for wrong in ({"frames": 99}, {"frames": "x"}, {"start": "nan"}, {"start": -1}):
        problem(api.get(where, params=wrong), 400)
    problem(api.get(where, params={"start": 99}), 422)


def test_a_video_that_browsers_do_not_play_is_streamed(api: TestClient) -> None:
    where = f"/v1/media/{id_of(api, 'clip2.mp4')}/stream"
    answer = api.get(where, params={"start": 2})
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["x-start"] == "2.000000"
    assert answer.content[4:8] == b"ftyp"
    assert api.head(where, params={"start": 2}).headers["x-start"] == "2.000000"
    problem(api.get(f"/v1/media/{id_of(api, 'picture0.png')}/stream"), 415)


# --- The index, health, documents -------------------------------------------------------------------------------------


def test_the_index_says_what_it_holds_and_what_it_skipped(api: TestClient, served: tuple[Path, Path]) -> None:
    state = api.get("/v1/index").json()
    (index,) = state["indexes"]
    assert (index["clips"], index["videos"], index["images"]) == (8, 6, 2)
    assert index["segments"] > 20
    assert index["segments_of"] == "0.5"
    assert index["media_bytes"] == sum(path.stat().st_size for path in served[1].rglob("*.[mp][pn][4g]")) - 11
    assert [one["file"] for one in index["skipped"]] == ["broken.mp4"]
    assert "not a media file" in index["skipped"][0]["reason"]
    assert state["budgets"] is None


def test_a_text_is_counted_once_a_query(api: TestClient) -> None:
    def counted() -> dict[str, float]:
        found = re.findall(r'perceiver_vl_cache_total\{cache="texts",result="(\w+)"\} (\S+)', api.get("/metrics").text)
        return {result: float(number) for result, number in found}

    before = counted()
    post(api, "/v1/search", query="words that nobody has asked for before")
    first = counted()
    post(api, "/v1/search", query="words that nobody has asked for before")
    again = counted()
    assert (first["miss"] - before.get("miss", 0), first["hit"] - before.get("hit", 0)) == (1, 0)
    assert (again["miss"] - first["miss"], again["hit"] - first["hit"]) == (0, 1)


def test_health_and_metrics(api: TestClient) -> None:
    assert api.get("/health/live").json()["status"] == "live"
    assert api.get("/health/ready").json()["status"] == "ready"
    post(api, "/v1/search", query=QUERY)
    post(api, "/v1/search", query=QUERY)
    text = api.get("/metrics").text
    for line in (
        r'perceiver_vl_requests_total\{method="POST",route="/v1/search",status="200"\} \d',
        r'perceiver_vl_stage_seconds_bucket\{le="0.1",stage="encode"\} \d',
        r'perceiver_vl_cache_total\{cache="texts",result="hit"\} [1-9]',
        r'perceiver_vl_index_rows\{index="index",table="clips"\} 8.0',
        r"perceiver_vl_queue_length 0.0",
        r'perceiver_vl_model_info\{.*version="',
    ):
        assert re.search(line, text), line


def test_the_document_describes_what_is_answered(api: TestClient) -> None:
    """Every answer of this test validates against its schema, and every message has one."""
    document = api.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"

    def check(path: str, method: str, answer: Any) -> None:
        operation = document["paths"][path][method]
        status = next(code for code in operation["responses"] if code != "default")
        schema = operation["responses"][status]["content"]["application/json"]["schema"]
        jsonschema.validate(answer, {**schema, "components": document["components"]})

    clip = id_of(api, "clip0.mp4")
    check("/v1/search", "post", post(api, "/v1/search", query=QUERY))
    check("/v1/moments", "post", post(api, "/v1/moments", query=QUERY))
    check("/v1/ask", "post", post(api, "/v1/ask", id=clip, question="what?", choices=["a", "b"]))
    check("/v1/embed", "post", post(api, "/v1/embed", texts=["a"]))
    check("/v1/embeddings", "post", post(api, "/v1/embeddings", input="a"))
    for path in ("/v1/clips/{id}", "/v1/clips/{id}/look", "/v1/index", "/v1/index/jobs", "/health/ready"):
        check(path, "get", api.get(path.replace("{id}", clip), params={"query": "a"}).json())
    shown = api.get("/api").text
    assert all(f'id="{name}"' in shown for name in document["components"]["schemas"])
    request = document["paths"]["/v1/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    whole = {**request, "components": document["components"]}
    jsonschema.validate({"query": QUERY, "like": [{"id": clip}]}, whole)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"query": 3}, whole)


def test_before_the_index_is_open_the_answer_is_503(served: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from perceiver_vl.serve import service

    go = threading.Event()
    really = service.open_library

    def slow(*arguments: Any) -> Any:
        assert go.wait(10)
        return really(*arguments)

    monkeypatch.setattr(service, "open_library", slow)
    with service_of(served[0]) as client:
        answer = client.post("/v1/search", json={"query": "a"})
        assert "being opened" in problem(answer, 503)
        assert answer.headers["retry-after"] == "1"
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").json()["status"] == "loading"
        go.set()
        assert opened(client).post("/v1/search", json={"query": "a"}).status_code == 200


def test_request_ids_are_kept_or_made(api: TestClient) -> None:
    assert api.get("/health/live", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = api.get("/health/live", headers={"X-Request-Id": "a b\tc"}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{16}", made)


def test_the_log_is_json_and_says_nothing_of_the_query(api: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    post(api, "/v1/search", query="a secret wish")
    said = capsys.readouterr().err
    line = json.loads(said.strip().splitlines()[-1])
    assert (line["event"], line["route"], line["status"]) == ("request", "/v1/search", 200)
    assert "secret" not in said
