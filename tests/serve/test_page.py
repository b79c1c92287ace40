"""The page in a real browser, headless: a journey by keyboard, filters, a drop, links, looks, and hostile names."""

import base64
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="needs pip install playwright, of the extra [dev]")

from playwright.sync_api import Browser, Page, sync_playwright

from perceiver_vl.search.table import SEGMENTS, open_table
from small_service import MARKUP, opened, running, service_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as of apt-get install chromium")
QUERY = "a red square moves left"
SIZES = [(360, 740), (768, 1024), (1440, 900)]


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
    page.set_default_timeout(60_000)
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
    end = time.monotonic() + 60
    while not page.evaluate(f"() => Boolean({holds})"):
        assert time.monotonic() < end, holds
        time.sleep(0.03)


def search(page: Page, words: str) -> None:
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")  # which selects what is there
    page.keyboard.type(words)
    page.keyboard.press("Enter")
    until(page, "new URL(location).searchParams.get('q') === document.querySelector('#q').value.trim()")
    until(page, "!document.querySelector('#status').textContent.startsWith('Searching')")


def names(page: Page) -> list[str]:
    return page.locator(".hit .name").all_text_contents()


def test_from_an_empty_box_to_a_playing_moment_and_an_answer_by_keyboard_alone(page: Page) -> None:
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type(QUERY)
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit")
    page.keyboard.press("Escape")  # to the first hit
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.closest('.hit') === document.querySelector('.hit')")
    page.keyboard.press("Enter")
    page.wait_for_selector("#player[open] video")
    until(page, "document.querySelector('video').currentTime > 0 && !document.querySelector('video').error")
    assert page.locator("#curve polyline").count() >= 1
    until(page, "location.search.includes('hit=')")
    before = page.evaluate("location.href")
    page.keyboard.press("ArrowRight")
    until(page, "!document.querySelector('#previous').disabled")
    assert page.evaluate("location.href") != before
    page.keyboard.press("ArrowLeft")
    until(page, "document.querySelector('#previous').disabled")
    assert page.evaluate("location.href") == before
    for _ in range(12):  # to the question
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "question":
            break
    page.keyboard.type("what is it?")
    page.keyboard.press("Tab")
    page.keyboard.type("a red square | a blue circle")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answers li")
    assert "Read in" in page.inner_text("#answers")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#answers').textContent.includes('had been read')")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('#player').open")
    # A dialog is closed at once and says so in a task of its own, in which the address and the focus follow.
    until(page, "!location.search.includes('hit=')")
    until(page, "document.activeElement.closest('.hit') !== null")


def test_filters_become_chips_that_can_be_taken_away_and_back_brings_them_again(page: Page) -> None:
    search(page, "a folder:trip type:video")
    until(page, "document.querySelectorAll('#chips .chip').length === 2")
    assert all(name.startswith("trip/") for name in names(page))
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
    page.wait_for_selector("#chips .chip")
    assert "<b>mine</b>.png" in page.inner_text("#chips")
    until(page, "document.querySelectorAll('.hit').length > 0")
    assert names(page)[0] == "picture1.png"
    page.click("button[aria-label='Remove the example']")
    until(page, "document.querySelectorAll('#chips .chip').length === 0")


def test_more_like_this_and_a_link_show_the_same(page: Page, browser: Browser, address: str) -> None:
    search(page, QUERY)
    page.locator(".hit button").first.click()
    page.wait_for_selector("#chips .chip")
    until(page, "document.querySelectorAll('.hit').length > 0")
    shown = names(page)
    page.locator(".hit a").first.click()
    page.wait_for_selector("#player[open]")
    for other in watched_link(browser, page.evaluate("location.href")):
        other.wait_for_selector("#player[open]")
        until(other, "document.querySelectorAll('.hit').length > 0")
        assert names(other) == shown
        assert other.inner_text("#player-name") == page.inner_text("#player-name")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('#player').open")


def watched_link(browser: Browser, url: str) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(url)
    yield page
    context.close()


def test_where_the_model_looked_is_drawn(page: Page) -> None:
    search(page, QUERY)
    page.locator(".hit a").first.click()
    page.wait_for_selector("#player[open]")
    page.click("#look")
    page.wait_for_selector("#looked canvas")
    assert "no proof" in page.inner_text("#looked")
    assert page.evaluate("document.querySelector('#looked canvas').width") >= 320
    page.keyboard.press("Escape")


def test_names_captions_and_queries_are_never_markup(page: Page) -> None:
    """The index holds a file that is called as an image, and captions that are scripts."""
    search(page, f"a {MARKUP}")
    page.click("#find-clips")
    until(page, "document.querySelectorAll('.hit').length > 2")
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert any(MARKUP in name for name in names(page))
    assert "<script>alert(2)</script>" in page.inner_text("#hits")
    page.locator(".hit", has=page.locator(".name", has_text="onerror")).locator("a").first.click()
    page.wait_for_selector("#player[open]")
    assert MARKUP in page.inner_text("#player-name")
    page.keyboard.press("Escape")
    page.click("#open-index")
    page.wait_for_selector("#indexes section")
    assert "broken.mp4" in page.text_content("#indexes")  # type: ignore[operator]
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
            until(page, "document.querySelectorAll('.hit').length > 0")
            assert "None is better than chance" in page.inner_text("#status")


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
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        assert faults(page) == []
        page.locator(".hit a").first.click()
        page.wait_for_selector("#player[open]")
        assert faults(page) == []
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.querySelector('#player').scrollWidth <= innerWidth")
        page.keyboard.press("Escape")
        page.goto(f"{address}/api")
        assert faults(page) == []


def test_the_page_is_small() -> None:
    folder = Path(__file__).parents[2] / "src" / "perceiver_vl" / "serve"
    files = [folder / "page.html.jinja", *(folder / "static").iterdir()]
    assert sum(path.stat().st_size for path in files) <= 60_000
