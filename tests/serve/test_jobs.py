"""Updates of an index from the page: live, one at a time, cancelled, refused."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from perceiver_vl.search import build_index
from perceiver_vl.search.query_graph import graph_path
from perceiver_vl.search.table import open_table
from perceiver_vl.serve import index_job
from perceiver_vl.serve.jobs import IndexJobs
from small_media import save_model, write_clip
from small_service import opened, post, problem, processes_are_killed, service_of


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Path]:
    """(index, media): a small index to be changed, of a model that has no graphs for quick searches."""
    media, index, model = tmp_path / "media", tmp_path / "index", save_model(tmp_path / "model", seed=3)
    write_clip(media / "clip0.mp4", seed=0)
    build_index(model, media, index)
    none = graph_path(model, open_table(index).settings)
    assert none is not None
    none.parent.mkdir(parents=True, exist_ok=True)
    none.touch()
    return index, media


def follow(client: TestClient, job: str) -> list[dict[str, Any]]:
    with client.stream("GET", f"/v1/index/jobs/{job}/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        return [json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: ")]


def test_an_update_is_followed_to_its_end(own: tuple[Path, Path]) -> None:
    index, media = own
    for number in range(1, 4):
        write_clip(media / f"clip{number}.mp4", seed=number)
    (media / "broken.mp4").write_bytes(b"no")
    with service_of(index) as client:
        started = opened(client).post("/v1/index/jobs", json={})
        assert started.status_code == 202
        assert "is being updated" in problem(client.post("/v1/index/jobs", json={}), 409)
        told = follow(client, started.json()["id"])
        assert told[0]["state"] == "running"
        assert told[-1]["state"] == "done"
        assert "4 clips (3 encoded" in told[-1]["summary"]
        assert [one["file"] for one in told[-1]["skipped"]] == ["broken.mp4"]
        assert any(one["stage"] == "Encoding clips" and one["total"] for one in told)
        assert len(post(client, "/v1/search", query="a", group=False)["hits"]) == 4  # as soon as that is told
        assert [one["state"] for one in client.get("/v1/index/jobs").json()["jobs"]] == ["done"]


def test_what_goes_wrong_with_an_update_is_one_line(own: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    own[1].rename(own[1].with_name("elsewhere"))
    assert index_job.main(str(own[0])) == 1
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "media" in said["error"]


def test_an_update_can_be_cancelled(own: tuple[Path, Path]) -> None:
    with service_of(own[0]) as client:
        job = opened(client).post("/v1/index/jobs", json={}).json()["id"]
        assert client.delete(f"/v1/index/jobs/{job}").json()["state"] == "cancelled"
        assert follow(client, job)[-1]["state"] == "cancelled"
        problem(client.get("/v1/index/jobs/nothing"), 404)
        problem(client.get("/v1/index/jobs/nothing/events"), 404)


def test_an_update_whose_process_is_killed_has_failed_and_another_can_be_begun(own: tuple[Path, Path]) -> None:
    with service_of(own[0]) as client:
        with processes_are_killed():
            job = opened(client).post("/v1/index/jobs", json={}).json()["id"]
            last = follow(client, job)[-1]
        assert (last["state"], last["error"]) == ("failed", "the process ended with -9")
        assert post(client, "/v1/search", query="a")["hits"]
        again = client.post("/v1/index/jobs", json={})
        assert again.status_code == 202
        assert client.delete(f"/v1/index/jobs/{again.json()['id']}").json()["state"] == "cancelled"


def test_a_read_only_service_updates_nothing(own: tuple[Path, Path]) -> None:
    with service_of(own[0], can_index=False) as client:
        assert "this service only reads" in problem(opened(client).post("/v1/index/jobs", json={}), 403)
        assert client.get("/v1/index").json()["can_index"] is False


def test_an_update_that_is_cancelled_before_it_has_a_process_changes_nothing(own: tuple[Path, Path]) -> None:
    index, media = own
    write_clip(media / "clip1.mp4", seed=1)
    before = open_table(index).version

    async def cancelled_at_once() -> None:
        ended = asyncio.Event()

        async def when_done() -> None:
            ended.set()

        jobs = IndexJobs(when_done)
        job = await jobs.start(SimpleNamespace(name="index", place=str(index)))  # type: ignore[arg-type]
        assert (await jobs.cancel(job.id)).state == "cancelled"
        await asyncio.wait_for(ended.wait(), 120)

    asyncio.run(cancelled_at_once())
    assert open_table(index).version == before
