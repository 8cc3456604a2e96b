"""The pages "Runs and models" and "HTTP" in a real browser."""

import re
import shutil

import pytest

from steelsight.bundle import DEFAULT_BUNDLE

TOKEN = "a-secret-of-the-plant"


@pytest.fixture(scope="module")
def plant(serving, tmp_path_factory):
    """A service with a token, another model, and a shadow."""
    folder = tmp_path_factory.mktemp("runs")
    other = folder / "models" / "other"
    shutil.copytree(DEFAULT_BUNDLE, other)
    text = (other / "decision.toml").read_text()
    (other / "decision.toml").write_text(text.replace("clear_below = 0.15148", "clear_below = 0.1"))
    shutil.copytree(other, folder / "models" / "bad")
    (folder / "models" / "bad" / "gate.int8.onnx").write_bytes(b"junk")
    (folder / "token").write_text(TOKEN)
    options = ["--models", str(folder / "models"), "--token-file", str(folder / "token")]
    options += ["--shadow", str(other), "--threads", "1", "--engine", "onnxruntime"]
    with serving(folder / "data", options) as service:
        service.client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield service


@pytest.fixture
def page(browser_page, plant):
    """Signed in, as a person would."""
    browser_page.goto(f"{plant.url}/runs")
    assert browser_page.url.endswith("/login")
    browser_page.fill("input[name=token]", TOKEN)
    browser_page.click("button")
    browser_page.wait_for_selector("html[data-ready]")
    browser_page.goto(f"{plant.url}/runs")
    browser_page.wait_for_selector("html[data-ready]")
    return browser_page


def test_a_model_is_activated_and_two_runs_are_compared(page, plant):
    for number in (1, 6, 6):
        plant.inspect(plant.sample(number), f"{number}.jpg")
    before = plant.client.get("/v1/models").json()["active"]
    page.click("#available li:has-text('other') button")
    page.wait_for_selector("#done:not([hidden])")
    after = plant.client.get("/v1/models").json()["active"]
    assert after["decision"] != before["decision"]
    assert after["decision"] in page.inner_text("#active")
    page.click("#available li:has-text('bad') button")
    page.wait_for_selector("#error:not([hidden])")
    assert "stays" in page.inner_text("#error")
    assert plant.client.get("/v1/models").json()["active"]["decision"] == after["decision"]
    rows = page.locator("#runs tr").all_inner_texts()
    assert len(rows) == 2
    assert re.search(r"\b3\s+2\s+1\s+0\b", rows[1])  # the older one: 3 = 2 OK + 1 NG + 0
    for box in page.locator("#runs input").all():
        box.check()
    told = page.inner_text("#comparison")
    assert "differ in decision" in told
    assert "3 = 2 OK + 1 NG + 0 UNKNOWN" in told
    assert "33.3 % (6.1 % to 79.2 %)" in told  # Wilson 1 of 3, Newcombe 1998
    page.complaints.clear()  # the browser itself tells of the 409
    assert page.locator("#shadow").is_visible()
    page.reload()
    page.wait_for_selector("#shadow-words:text('of 3 frames')")


def test_without_a_token_models_stay(browser_page, service):
    browser_page.goto(f"{service.url}/runs")
    browser_page.wait_for_selector("html[data-ready]")
    browser_page.click("#available button")
    browser_page.wait_for_selector("#error:not([hidden])")
    assert "--token-file" in browser_page.inner_text("#error")
    browser_page.complaints.clear()  # the browser itself tells of the 403


def test_every_route_is_described_with_a_line_to_try_it(browser_page, service):
    browser_page.goto(f"{service.url}/docs/api")
    paths = service.client.get("/openapi.json").json()["paths"]
    shown = browser_page.locator(".route h2 code").all_inner_texts()
    assert set(shown) == set(paths)
    assert len(shown) == sum(len(methods) for methods in paths.values())
    curls = browser_page.locator(".route > pre").all_inner_texts()
    assert all(line.startswith("curl ") for line in curls)
    inspect = browser_page.inner_text("#post-v1-inspect")
    assert "X-Frame-Name".lower() in inspect.lower()
    assert "--data-binary @frame.jpg" in inspect
    browser_page.click("#post-v1-inspect summary")
    assert "faulty_probability" in browser_page.inner_text("#post-v1-inspect")
    browser_page.set_viewport_size({"width": 390, "height": 740})
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("path", ["/", "/review", "/watch", "/runs", "/docs/api"])
def test_every_page_is_in_the_menu_and_says_where_one_is(browser_page, service, path):
    browser_page.goto(f"{service.url}{path}")
    menu = browser_page.locator("header nav a")
    assert menu.all_inner_texts() == ["Inspect", "Review", "Watch", "Runs and models", "HTTP"]
    current = browser_page.locator("header nav a[aria-current=page]")
    assert current.get_attribute("href") == path
    browser_page.goto("about:blank")
