"""The page "Review" in a real browser: verdicts by key, undo, corrected regions, and the store."""

import numpy as np
import pytest

from steelsight.defects import Verdict
from steelsight.exports import StoredResults
from steelsight.masks import decode_rle

WHO = "<b>Ann</b>"
HOSTILE = "<img src=x onerror=alert(1)>\u202e.jpg"


@pytest.fixture
def service(serving, tmp_path):
    """Two NG frames and a damaged one wait."""
    with serving(tmp_path / "data", ["--threads", "1"]) as started:
        started.answers = [
            started.inspect(started.sample(1), "first.jpg").json(),
            started.inspect(started.sample(2), HOSTILE).json(),
            started.inspect(started.sample(3)[:4000], "cut.jpg").json(),
        ]
        assert [one["verdict"] for one in started.answers] == ["NG", "NG", "UNKNOWN"]
        yield started


@pytest.fixture
def page(service, browser_page):
    # In this order the browser is closed before the service that it asks.
    browser_page.goto(f"{service.url}/review")
    browser_page.wait_for_selector("html[data-ready]")
    browser_page.fill("#name", WHO)
    browser_page.click("#name-form button")
    browser_page.wait_for_selector("#case:not([hidden])")
    return browser_page


def stored(service):
    with StoredResults(service.data / "store.db") as store:
        return list(store.reviews())


def showing(page, name):
    page.wait_for_selector(f"#case-name:text-is({name!r})")


def test_one_key_stores_a_verdict_and_another_takes_it_back(page, service):
    first, second, cut = service.answers
    showing(page, "first.jpg")
    assert "waiting for you: 2 NG, 1 UNKNOWN, 0 OK" in page.inner_text("#waiting")
    page.keyboard.press("o")
    page.wait_for_selector("#stored:not([hidden])")
    assert "first.jpg is OK (the model said NG)" in page.inner_text("#stored")
    assert WHO in page.inner_text("#stored")
    page.wait_for_selector("#waiting:text('1 NG, 1 UNKNOWN')")
    (review,) = stored(service)
    assert (review.inspection, review.verdict, review.who) == (first["id"], Verdict.OK, WHO)
    showing(page, second["image"])
    page.keyboard.press("z")
    showing(page, "first.jpg")
    assert stored(service) == []
    page.click("#note")
    page.keyboard.type("oil, no defect")  # o, n, a, ... are no verdicts here
    assert stored(service) == []
    page.click("button[data-key=o]")
    page.wait_for_selector(f"#history li[data-review='{review.id + 1}']")
    (review,) = stored(service)
    assert review.note == "oil, no defect"
    page.reload()
    page.wait_for_selector("#case:not([hidden])")
    assert page.inner_text("#who") == WHO  # the browser remembers who reviews
    assert page.inner_text("#case-name") == second["image"]
    assert page.locator("main img").count() == 0
    page.keyboard.press("s")
    showing(page, "cut.jpg")
    assert "1 skipped" in page.inner_text("#skipped")
    page.click("#again")
    showing(page, second["image"])
    page.keyboard.press("s")
    showing(page, "cut.jpg")
    assert page.locator("#undrawn").is_visible() or page.locator("#view canvas").is_visible()
    page.keyboard.press("a")
    page.wait_for_selector("#empty:not([hidden])")
    page.wait_for_selector("#agreement p:text('1 of 2 frames, 50 %') >> nth=0")
    said = {one.inspection: one.verdict for one in stored(service)}
    assert said == {first["id"]: Verdict.OK, cut["id"]: Verdict.UNKNOWN}


def test_regions_are_drawn_retyped_erased_and_stored(page, service):
    first = service.answers[0]
    showing(page, "first.jpg")
    page.keyboard.press("e")
    page.wait_for_selector("#tools:not([hidden])")
    page.click("#clear")
    page.keyboard.press("2")
    box = page.locator("#view canvas").bounding_box()
    scale = min(box["width"] / 1600, box["height"] / 256)

    def at(x, y):
        return (
            box["x"] + box["width"] / 2 + (x - 800) * scale,
            box["y"] + box["height"] / 2 + (y - 128) * scale,
        )

    def stroke(*places):
        page.mouse.move(*at(*places[0]))
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*at(*place))
        page.mouse.up()

    page.fill("#size", "20")
    stroke((400, 100), (500, 100), (600, 120))
    stroke((1000, 60), (1040, 60))
    page.mouse.click(*at(1020, 60))  # choose the second region
    page.wait_for_selector("#region-tools:not([hidden])")
    page.select_option("#retype", "4")
    page.keyboard.press("x")
    stroke((500, 80), (500, 140))
    stroke((300, 30), (310, 30))  # nothing there
    page.keyboard.press("b")
    page.keyboard.press("1")
    stroke((200, 200), (260, 200))
    page.keyboard.press("Control+z")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stored:not([hidden])")
    (review,) = stored(service)
    assert (review.inspection, review.verdict) == (first["id"], Verdict.NG)
    assert set(review.labels) == {"2", "4"}
    two, four = (decode_rle(review.labels[kind], (1600, 256)) for kind in ("2", "4"))
    assert two[100, 420]
    assert two[118, 590]
    assert not two[100, 500]  # erased
    assert not two[60].any()  # retyped
    assert four[60, 1005:1035].all()
    rows, columns = np.nonzero(four)
    assert abs(np.ptp(rows) + 1 - 20) <= 2
    assert abs(np.ptp(columns) + 1 - 60) <= 4
    assert "corrected regions" in page.inner_text("#history")
    with page.expect_download() as download:
        page.click("#export")
    assert download.value.suggested_filename == "corrected.zip"


def test_what_was_drawn_is_not_lost_by_a_key(page, service):
    showing(page, "first.jpg")
    page.keyboard.press("e")
    page.wait_for_selector("#tools:not([hidden])")
    page.click("#clear")
    box = page.locator("#view canvas").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 60)
    page.mouse.up()
    for key in "aouszEa":
        page.keyboard.press(key)
        assert "You have drawn regions" in page.inner_text("#error")
    assert stored(service) == []
    page.keyboard.press("n")
    page.wait_for_selector("#stored:not([hidden])")
    (review,) = stored(service)
    assert (review.verdict, len(review.labels)) == (Verdict.NG, 1)
    page.wait_for_selector("#tools", state="hidden")
    page.keyboard.press("e")
    page.wait_for_selector("#tools:not([hidden])")
    page.click("#clear")
    page.keyboard.press("Escape")
    page.wait_for_selector("#tools", state="hidden")
    page.keyboard.press("a")
    showing(page, "cut.jpg")
    assert [one.labels for one in stored(service)] == [review.labels, None]


def test_nobody_reviews_without_a_name(service, browser_page):
    browser_page.goto(f"{service.url}/review")
    browser_page.wait_for_selector("html[data-ready]")
    browser_page.keyboard.press("Escape")
    browser_page.keyboard.press("o")
    assert browser_page.locator("#desk").is_hidden()
    assert stored(service) == []


def test_a_phone_shows_all_without_scrolling_sideways(page, service):
    page.set_viewport_size({"width": 360, "height": 740})
    page.keyboard.press("e")
    page.wait_for_selector("#tools:not([hidden])")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
