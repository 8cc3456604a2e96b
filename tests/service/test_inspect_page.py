"""The page "Inspect" in a real browser."""

import cv2
import numpy as np
import pytest

from steelsight.defects import Verdict
from steelsight.exports import StoredResults
from steelsight.masks import decode_rle, encode_rle
from steelsight.service.pages import CONTENT_SECURITY_POLICY

HOSTILE = [
    "<img src=x onerror=alert(1)>.jpg",
    "\u202eevil\"'`&lt;.jpg",
    "ö" * 125 + "a.jpg",  # 255 bytes
]


@pytest.fixture
def page(browser_page, service):
    browser_page.goto(service.url)
    browser_page.wait_for_selector("html[data-ready]")
    return browser_page


def upload(page, *files):
    """Frames as a person would choose them: (name, content)."""
    before = page.locator("#frames li").count()
    page.set_input_files(
        "#files",
        [{"name": name, "mimeType": "image/jpeg", "buffer": data} for name, data in files],
    )
    for n in range(before, before + len(files)):
        page.wait_for_selector(f"#frames li:nth-child({n + 1}) .badge")
    page.wait_for_selector("#shown:not([hidden])")


def picture(page):
    """What the canvas shows, RGB."""
    data = page.evaluate(
        """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
          const canvas = document.querySelector("#view canvas");
          done(canvas.toDataURL("image/png"));
        })))"""
    )
    import base64

    png = np.frombuffer(base64.b64decode(data.partition(",")[2]), np.uint8)
    return cv2.cvtColor(cv2.imdecode(png, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_pages_allow_nothing_from_elsewhere(service):
    answer = service.client.get("/")
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert answer.headers["referrer-policy"] == "same-origin"
    assert "http://" not in answer.text.replace(service.url, "")
    assert "https://" not in answer.text
    assert service.client.get("/?title=<b>&template=base&path=x").text == answer.text
    for name in ("../pages.py", "..%2fpages.py", "none.js", "%00", ".", "app.css%00"):
        assert service.client.get(f"/static/{name}").status_code in (400, 404)
    style = service.client.get("/static/app.css")
    assert style.headers["content-type"].startswith("text/css")


def test_a_frame_is_judged_and_explained(page, service):
    upload(page, ("coil 7.jpg", service.sample(1)))
    expected = service.inspect(service.sample(1), "coil 7.jpg").json()
    assert page.inner_text("#verdict") == "NG"
    assert page.inner_text("#shown-name") == "coil 7.jpg"
    assert page.locator("#defects tr").count() == len(expected["defects"]) > 0
    first = page.locator("#defects tr").first.inner_text()
    assert str(expected["defects"][0]["area_px"]) in first
    assert expected["model"] in page.inner_text("#facts")
    # The outline has the colour of the type, on a grey frame.
    colour = next(
        one["colour"]
        for one in service.client.get("/v1/models").json()["active"]["classes"]
        if one["id"] == expected["defects"][0]["class"]
    )
    rgb = [int(colour[n : n + 2], 16) for n in (1, 3, 5)]
    assert (np.abs(picture(page).astype(int) - rgb).max(axis=2) < 12).sum() > 100
    page.uncheck("#outlines")
    page.fill("#opacity", "0")
    assert (np.abs(picture(page).astype(int) - rgb).max(axis=2) < 12).sum() == 0


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_frames_are_dropped_and_pasted(page, service, how):
    page.evaluate(
        """async ([how, url]) => {
          const blob = await (await fetch(url)).blob();
          const data = new DataTransfer();
          data.items.add(new File([blob], "given.jpg", { type: "image/jpeg" }));
          const given = { bubbles: true, cancelable: true };
          if (how === "paste") {
            dispatchEvent(new ClipboardEvent("paste", { ...given, clipboardData: data }));
          } else {
            const over = new DragEvent("dragenter", { ...given, dataTransfer: data });
            document.body.dispatchEvent(over);
            document.body.dispatchEvent(new DragEvent("drop", { ...given, dataTransfer: data }));
          }
        }""",
        [how, f"{service.url}/v1/samples/1"],
    )
    page.wait_for_selector("#verdict .badge.ng")
    assert page.inner_text("#shown-name") == "given.jpg"
    assert page.locator("#dropping").is_hidden()


def test_thresholds_act_at_once_and_store_nothing(page, service):
    upload(page, ("a.jpg", service.sample(1)))
    result = service.inspect(service.sample(1), "a.jpg").json()
    kind = result["defects"][0]["class"]
    before = page.locator("#defects tr").count()
    stored = service.client.get("/v1/results").json()["matching"]
    page.fill(f"[aria-label$='{kind} min_area_px']", "400000")
    page.wait_for_selector("#explored:has-text('nothing is stored')")
    kept = [one for one in result["defects"] if one["class"] != kind]
    assert page.locator("#defects tr").count() == len(kept) < before
    page.click("#reset")
    assert page.locator("#defects tr").count() == before
    assert page.locator("#explored").is_hidden()
    assert service.client.get("/v1/results").json()["matching"] == stored
    page.fill("[aria-label='clear_below']", "0.9")  # above ng_from: impossible
    page.wait_for_selector("#error:not([hidden])")
    assert "clear_below" in page.inner_text("#error")
    page.complaints.clear()  # the browser itself tells of the 400


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(page, service, name):
    upload(page, (name, service.sample(2)))
    assert page.locator("main img[src='x']").count() == 0
    with StoredResults(service.data / "store.db") as store:
        names = {row.name.partition("/")[2] for row in store.inspections()}
    assert page.inner_text("#shown-name") in names
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_many_frames_keep_their_order(page, service):
    files = [(f"{n}.jpg", service.sample(n % 6 + 1)) for n in range(5)]
    upload(page, *files, ("broken.jpg", b"\xff\xd8\xff no image"))
    listed = page.locator("#frames bdi").all_inner_texts()
    assert listed == [*(name for name, _ in files), "broken.jpg"]
    assert page.inner_text("#shown-name") == "0.jpg"
    page.click("#frames li:last-child button")
    page.wait_for_selector("#verdict .badge.unknown")
    assert "No verdict can be given" in page.inner_text("#summary")
    assert page.locator("#undrawn").is_visible()
    page.click("#samples button:last-child")
    page.wait_for_selector("#frames li:nth-child(7) .badge")


def test_a_frame_that_browsers_cannot_show_has_its_outlines(page, service):
    grey_hw = cv2.imdecode(np.frombuffer(service.sample(1), np.uint8), cv2.IMREAD_GRAYSCALE)
    tiff = cv2.imencode(".tif", grey_hw)[1].tobytes()
    page.set_input_files("#files", [{"name": "a.tif", "mimeType": "image/tiff", "buffer": tiff}])
    page.wait_for_selector("#defects tr")
    assert page.locator("#undrawn").is_visible()


def test_table_and_picture_are_linked(page, service):
    upload(page, ("a.jpg", service.sample(1)))
    canvas = page.locator("#view canvas")
    page.locator("#defects button").first.click()
    assert page.locator("#defects tr.chosen").count() == 1
    picture(page)
    assert float(canvas.get_attribute("data-zoom")) > 1
    page.keyboard.press("Escape")
    canvas.focus()
    page.keyboard.press("0")
    picture(page)
    assert float(canvas.get_attribute("data-zoom")) == 1
    page.keyboard.press("+")
    picture(page)
    assert float(canvas.get_attribute("data-zoom")) == 1.5
    page.keyboard.press("0")
    result = service.inspect(service.sample(1), "a.jpg").json()
    x, y, width, height = result["defects"][0]["bbox_xywh"]
    mask = decode_rle(result["defects"][0]["rle"], size_wh=tuple(result["size_wh"]))
    rows, columns = np.nonzero(mask)
    at = len(rows) // 2
    box = canvas.bounding_box()
    scale = min(box["width"] / 1600, box["height"] / 256)
    page.evaluate(
        "document.querySelectorAll('tr.chosen').forEach((r) => r.classList.remove('chosen'))"
    )
    canvas.click(
        position={
            "x": box["width"] / 2 + (columns[at] + 0.5 - 800) * scale,
            "y": box["height"] / 2 + (rows[at] + 0.5 - 128) * scale,
        }
    )
    assert page.locator("#defects tr.chosen").get_attribute("data-key") == "0"
    assert x <= columns[at] < x + width
    assert y <= rows[at] < y + height


def test_a_stored_result_is_opened_by_its_number(page, service):
    made = service.inspect(service.sample(3), "kept.jpg").json()
    page.goto(f"{service.url}/?id={made['id']}")
    page.wait_for_selector("html[data-ready]")
    assert page.inner_text("#verdict") == Verdict(made["verdict"]).value
    assert page.locator("#undrawn").is_hidden()


@pytest.mark.parametrize("size_wh", [(7, 5), (1, 9), (9, 1), (33, 64)])
def test_masks_are_read_as_python_writes_them(page, size_wh):
    """JavaScript against ``steelsight.masks``, and the other way round."""
    width, height = size_wh
    rng = np.random.default_rng(width)
    for share in (0, 0.1, 0.5, 1):
        mask_hw = (
            rng.random((height, width)) < share if share < 1 else np.ones((height, width), bool)
        )
        rle = encode_rle(mask_hw)
        found = page.evaluate(
            """async ([rle, width, height, box]) => {
              const { decodeRle, encodeRle, boundsOf } = await import("/static/rle.js");
              const mask = decodeRle(rle, width, height);
              return { mask: [...mask], rle: encodeRle(mask, width, height),
                bounds: boundsOf(mask, width, height),
                part: [...decodeRle(rle, width, height, box)] };
            }""",
            [rle, width, height, [0, 0, (width + 1) // 2, (height + 1) // 2]],
        )
        assert found["mask"] == mask_hw.astype(int).ravel().tolist()
        assert found["rle"] == rle
        part = mask_hw[: (height + 1) // 2, : (width + 1) // 2]
        assert found["part"] == part.astype(int).ravel().tolist()
        rows, columns = np.nonzero(mask_hw)
        expected = (
            [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            if len(rows)
            else None
        )
        assert found["bounds"] == expected


def test_outlines_hold_exactly_their_region(page):
    """The path of a random mask, filled, is the mask: holes and touching corners too."""
    mask_hw = np.random.default_rng(4).random((23, 31)) < 0.5
    found = page.evaluate(
        """async ([mask, width, height]) => {
          const { outlineOf } = await import("/static/view.js");
          const path = outlineOf(Uint8Array.from(mask), [0, 0, width, height]);
          const context = new OffscreenCanvas(width, height).getContext("2d");
          context.fill(path);
          const { data } = context.getImageData(0, 0, width, height);
          return [...data].filter((_, i) => i % 4 === 3).map((alpha) => alpha > 127 ? 1 : 0);
        }""",
        [mask_hw.astype(int).ravel().tolist(), 31, 23],
    )
    assert found == mask_hw.astype(int).ravel().tolist()


def test_a_phone_shows_all_without_scrolling_sideways(page, service):
    page.set_viewport_size({"width": 360, "height": 740})
    upload(page, ("a.jpg", service.sample(1)))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
