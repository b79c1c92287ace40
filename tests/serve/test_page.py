"""The page in a real browser, headless: a journey by keyboard, filters, a drop, links, looks, and hostile names.

What an action leads to comes later: whatever is asserted of it is waited for (`until`), unless it is done by then.
"""

import asyncio
import base64
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="needs pip install playwright, of the extra [dev]")

from playwright.sync_api import Browser, Page, sync_playwright

from perceiver_vl.inference.budget_selection import Frontier, OperatingPoint, write_frontier
from perceiver_vl.models.folder import model_fingerprint
from perceiver_vl.search.table import SEGMENTS, open_table
from small_service import MARKUP, opened, running, service_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as of apt-get install chromium")
QUERY = "a red square moves left"
PATIENCE = 180  # seconds: the machine may have other work
SIZES = [(360, 740), (768, 1024), (1440, 900)]
# In the place of the process that updates an index, INDEX GATE: it loses a clip once there is a gate.
UPDATE = """
import json, pathlib, sys, time
from perceiver_vl.search.table import open_table
say = lambda **told: print(json.dumps(told), flush=True)
say(stage="Encoding clips", done=1, total=4)
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.02)
open_table(sys.argv[1]).commit(gone=["clip0.mp4"])
say(summary="7 clips (1 gone)", skipped=[{"file_name": "<i>odd</i>.mp4", "reason": "no frames"}])
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        how = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=how)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(served: tuple[Path, Path]) -> Iterator[str]:
    with running(served[0]) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page of which no request leaves the machine, and which has no error in its console."""
    yield from watched(browser, address)


def watched(browser: Browser, address: str, refused: bool = False, **how: Any) -> Iterator[Page]:
    """refused: an answer may be a refusal, which a browser's console tells."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, **how)
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
    page.goto(address)
    until(page, "document.querySelector('#status').textContent.includes('to search')")
    yield page
    context.close()
    assert all(url.startswith((address, "blob:", "data:")) for url in asked), asked
    assert [one for one in wrong if not (refused and "status of 400" in one)] == []


def until(page: Page, holds: str) -> None:
    """Wait for an expression; the page's own policy forbids to evaluate it there, as `wait_for_function` does."""
    end = time.monotonic() + PATIENCE
    while not page.evaluate(f"() => Boolean({holds})"):
        assert time.monotonic() < end, holds
        time.sleep(0.03)


def search(page: Page, words: str) -> None:
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")  # which selects what is there
    page.keyboard.type(words)
    page.keyboard.press("Enter")
    until(page, "new URL(location).searchParams.get('q') === document.querySelector('#q').value.trim()")
    searched(page)


def searched(page: Page) -> None:
    """Once what was begun is answered; that it was begun is said at once."""
    until(page, "!document.querySelector('#status').textContent.startsWith('Searching')")


def close_player(page: Page) -> None:
    """A dialog is closed at once and says so in a task of its own, in which the address and the focus follow."""
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('#player').open && !location.search.includes('hit=')")


def playing(page: Page) -> None:
    """Once a video plays."""
    video = "document.querySelector('#player[open] video')"
    until(page, f"{video} && {video}.currentTime > 0 && !{video}.error")


def names(page: Page) -> list[str]:
    return page.locator(".hit .name").all_text_contents()


def test_from_an_empty_box_to_a_playing_moment_and_an_answer_by_keyboard_alone(page: Page) -> None:
    until(page, "document.activeElement.id === 'q'")
    page.keyboard.type(QUERY)
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.hit')")
    page.keyboard.press("Escape")  # to the first hit
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    until(page, "document.activeElement.closest('.hit') === document.querySelector('.hit')")
    page.keyboard.press("Enter")
    playing(page)
    until(page, "document.querySelector('#curve polyline') && location.search.includes('hit=')")
    before = page.evaluate("location.href")
    page.keyboard.press("ArrowRight")
    until(page, "!document.querySelector('#previous').disabled")
    assert page.evaluate("location.href") != before
    page.keyboard.press("ArrowLeft")
    until(page, "document.querySelector('#previous').disabled")
    assert page.evaluate("location.href") == before
    playing(page)  # before, the video that has the focus may be replaced, and the focus be nowhere
    for _ in range(12):  # to the question
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "question":
            break
    page.keyboard.type("what is it?")
    page.keyboard.press("Tab")
    page.keyboard.type("a red square | a blue circle")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#answers').textContent.includes('Read in')")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#answers').textContent.includes('had been read')")
    close_player(page)
    until(page, "document.activeElement.closest('.hit') !== null")


def test_filters_become_chips_that_can_be_taken_away_and_back_brings_them_again(page: Page) -> None:
    search(page, "a folder:trip type:video")
    until(page, "document.querySelectorAll('#chips .chip').length === 2")
    assert {name.partition("/")[0] for name in names(page)} == {"trip"}
    page.click("button[aria-label='Remove folder']")
    until(page, "document.querySelectorAll('#chips .chip').length === 1")
    assert page.input_value("#q") == "a type:video"
    page.go_back()
    until(page, "document.querySelectorAll('#chips .chip').length === 2")
    assert page.input_value("#q") == "a folder:trip type:video"
    page.go_forward()
    until(page, "document.querySelectorAll('#chips .chip').length === 1")


def test_what_is_wrong_is_said(browser: Browser, address: str) -> None:
    for page in watched(browser, address, refused=True):
        search(page, "before:soon car")
        until(page, "document.querySelector('#status').classList.contains('wrong')")
        assert "not a day or time" in page.inner_text("#status")
        search(page, "a before:1999")
        until(page, "document.querySelector('#status').textContent.includes('keep nothing')")


def test_a_picture_that_is_dropped_is_an_example(page: Page, served: tuple[Path, Path]) -> None:
    page.click("#find-clips")
    data = base64.b64encode((served[1] / "picture1.png").read_bytes()).decode()
    page.evaluate(
        """(data) => {
          const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "<b>mine</b>.png", { type: "image/png" }));
          dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
        }""",
        data,
    )
    until(page, "document.querySelector('#chips').textContent.includes('<b>mine</b>.png')")
    until(page, "document.querySelectorAll('.hit').length > 0")
    assert names(page)[0] == "picture1.png"
    page.click("button[aria-label='Remove the example']")
    until(page, "document.querySelectorAll('#chips .chip').length === 0")


def test_more_like_this_and_a_link_show_the_same(page: Page, browser: Browser, address: str) -> None:
    search(page, QUERY)
    page.locator(".hit button").first.click()
    until(page, "document.querySelector('#chips .chip')")  # in one go with the hits
    shown = names(page)
    assert shown
    page.locator(".hit a").first.click()
    page.wait_for_selector("#player[open]")
    for other in watched_link(browser, page.evaluate("location.href")):
        other.wait_for_selector("#player[open]")
        until(other, "document.querySelectorAll('.hit').length > 0")
        assert names(other) == shown
        assert other.inner_text("#player-name") == page.inner_text("#player-name")
    close_player(page)


def watched_link(browser: Browser, url: str) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(url)
    yield page
    context.close()


def test_where_the_model_looked_is_drawn(page: Page) -> None:
    search(page, QUERY)
    page.locator(".hit a").first.click()
    page.wait_for_selector("#player[open]")
    page.click("#look")
    until(page, "document.querySelector('#looked canvas')")
    assert "no proof" in page.inner_text("#looked")
    assert page.evaluate("document.querySelector('#looked canvas').width") >= 320
    close_player(page)


def test_names_captions_and_queries_are_never_markup(page: Page) -> None:
    """The index holds a file that is called as an image, and captions that are scripts."""
    search(page, f"a {MARKUP}")
    page.click("#find-clips")
    searched(page)  # or there are still the moments
    assert len(names(page)) > 2
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert any(MARKUP in name for name in names(page))
    assert "<script>alert(2)</script>" in page.inner_text("#hits")
    page.locator(".hit", has=page.locator(".name", has_text="onerror")).locator("a").first.click()
    page.wait_for_selector("#player[open]")
    assert MARKUP in page.inner_text("#player-name")
    close_player(page)
    page.click("#open-index")
    until(page, "document.querySelector('#indexes').textContent.includes('broken.mp4')")
    assert page.evaluate("document.querySelectorAll('img[src=x], script:not([src])').length") == 0


def test_nothing_found_is_said_and_can_be_looked_at_all_the_same(
    browser: Browser, served: tuple[Path, Path], tmp_path: Path
) -> None:
    index = Path(shutil.copytree(served[0], tmp_path / "index"))
    segments = open_table(index, name=SEGMENTS)
    segments.describe(replace(segments.settings, surprise=1e6))
    with service_of(index) as client:
        found = opened(client).post("/v1/moments", json={"query": QUERY}).json()
        assert (found["found"], found["hits"], found["threshold"]) == (False, [], 1e6)
        assert client.post("/v1/moments", json={"query": QUERY, "always": True}).json()["hits"]
    with running(index) as address:
        for page in watched(browser, address):
            search(page, QUERY)
            until(page, "document.querySelector('#status').textContent.includes('Nothing found')")
            page.click("#status button")
            until(page, "document.querySelector('#status').textContent.includes('None is better than chance')")
            assert names(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault_and_nothing_is_wider_than_the_screen(
    scheme: str, browser: Browser, address: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()

    def faults(page: Page) -> list[str]:
        found = axe.run(page).response["violations"]
        return [
            f"{one['id']}: {[node['html'] for node in one['nodes']]}"
            for one in found
            if one["impact"] in ("serious", "critical")
        ]

    for page in watched(browser, address, color_scheme=scheme):
        search(page, f"{QUERY} type:video")
        until(page, "document.querySelectorAll('.hit').length > 0")
        for width, height in SIZES:
            page.set_viewport_size({"width": width, "height": height})
            until(page, f"innerWidth === {width} && document.documentElement.scrollWidth <= innerWidth")
        assert faults(page) == []
        page.locator(".hit a").first.click()
        playing(page)
        assert faults(page) == []
        page.set_viewport_size({"width": 360, "height": 740})
        until(page, "innerWidth === 360 && document.querySelector('#player').scrollWidth <= innerWidth")
        close_player(page)
        page.goto(f"{address}/api")
        assert faults(page) == []


def test_an_update_is_shown_live_and_what_is_gone_is_gone(
    browser: Browser, served: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, gate = Path(shutil.copytree(served[0], tmp_path / "index")), tmp_path / "gate"
    really = asyncio.create_subprocess_exec

    async def scripted(*words: str, **how: Any) -> Any:
        return await really(sys.executable, "-c", UPDATE, words[-1], str(gate), **how)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", scripted)
    bar = "document.querySelector('#indexes progress')"
    with running(index) as address:
        for page in watched(browser, address):
            page.click("#open-index")
            until(page, "document.querySelector('#indexes').textContent.includes('6 videos')")
            page.click("#indexes section > button")
            until(page, f"{bar} && {bar}.value === 1 && {bar}.max === 4")
            assert "Encoding clips: 1 of 4" in page.inner_text("#indexes")
            page.keyboard.press("Escape")  # searches go on meanwhile
            until(page, "!document.querySelector('#index').open")
            page.click("#find-clips")
            search(page, "a")
            assert "clip0.mp4" in str(page.text_content("#hits"))
            page.click("#open-index")
            until(page, bar)  # it goes on
            gate.touch()
            until(page, "document.querySelector('#indexes').textContent.includes('7 clips (1 gone)')")
            assert "5 videos" in page.inner_text("#indexes")  # not those of before
            page.keyboard.press("Escape")
            until(page, "!document.querySelector('#index').open")
            page.click("#open-index")
            until(page, "document.querySelector('#indexes').textContent.includes('7 clips (1 gone)')")
            page.keyboard.press("Escape")
            until(page, "!document.querySelector('#index').open")
            search(page, "a b")
            assert names(page)
            assert "clip0.mp4" not in str(page.text_content("#hits"))


def test_a_slider_sets_what_an_answer_may_cost(
    browser: Browser, served: tuple[Path, Path], model_folder: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(model_folder, tmp_path / "model"))
    points = OperatingPoint("frames=2", 50.0, 0.1, 3.0), OperatingPoint("frames=4", 60.0, 0.2, 5.0)
    of = {"task": "retrieval", "metric": "mixed R@1", "lower_is_better": False, "unit": "a clip", "data": "worlds"}
    how = {"examples": 9, "dtype": "float32", "command": "bench", "machine": "this", "versions": {}}
    write_frontier(model, Frontier(points, **of, model_hash=model_fingerprint(model), **how))  # type: ignore[arg-type]
    asked: list[dict[str, Any]] = []
    with running(served[0], ask_model=model) as address:
        for page in watched(browser, address):
            page.on(
                "request", lambda one: asked.append(json.loads(one.post_data)) if one.url.endswith("/ask") else None
            )
            search(page, QUERY)
            page.locator(".hit a").first.click()
            until(page, "document.querySelector('#player[open]')")
            assert "frames=4: about 5.0 ms and 0.20 GFLOPs, mixed R@1 60.0 on worlds" in page.inner_text("#budget")
            page.fill("#question", "what?")
            page.fill("#choices", "a | b")
            for budget, key in (("frames=4", None), ("frames=2", "ArrowLeft")):
                if key is not None:
                    page.focus("#dial")
                    page.keyboard.press(key)
                    until(page, "document.querySelector('#dial-says').textContent.startsWith('frames=2: about 3.0 ms')")
                page.focus("#choices")
                page.keyboard.press("Enter")
                until(page, "document.querySelector('#answers').textContent.includes('Read in')")
                assert asked[-1]["budget"] == budget
                page.evaluate("document.querySelector('#answers').replaceChildren()")
            close_player(page)


def test_the_page_is_small() -> None:
    folder = Path(__file__).parents[2] / "src" / "perceiver_vl" / "serve"
    files = [folder / "page.html.jinja", *(folder / "static").iterdir()]
    assert sum(path.stat().st_size for path in files) <= 60_000
