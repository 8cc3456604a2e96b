"""The page "Watch" and what it asks: counts, control chart, drift, times; in a store of a line."""

import json
import time

import apsw
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from steelsight.bundle import load_bundle
from steelsight.drift import BASELINE_GROUPS, GROUP
from steelsight.service.watch import _shipped

FRAMES = 1500
DARK_FROM = 1300
"""From here on the lamp is dim, and three times as many frames are NG."""


def add_line(path, frames=FRAMES, seed=1):
    """Adds frames of a line to a store, as the service would have stored them."""
    rng = np.random.default_rng(seed)
    reference = _shipped()[load_bundle().id]

    def like(figure, n):
        return np.quantile(reference.figures[figure], rng.random(n))

    dark = np.arange(frames) >= DARK_FROM
    ng = rng.random(frames) < np.where(dark, 0.18, 0.05)
    unknown = ~ng & (rng.random(frames) < 0.01)
    brightness = like("brightness", frames) - 40 * dark
    contrast, scores = like("contrast", frames), like("score", frames)
    now_ms = int(time.time() * 1000)
    connection = apsw.Connection(str(path))
    with connection:
        first = connection.execute("SELECT ifnull(max(id), 0) FROM inspections").get + 1
        run, model, decision, setup = connection.execute(
            "SELECT id, model, decision, setup FROM runs ORDER BY id LIMIT 1"
        ).fetchone()
        for i in range(frames):
            verdict = "NG" if ng[i] else "UNKNOWN" if unknown[i] else "OK"
            connection.execute(
                "INSERT INTO inspections (id, model, decision, setup, inspected_ms, verdict, "
                "reason, n_defects, defect_area_px, faulty_probability, width, height, "
                "class_probabilities, notes, brightness, contrast, decode_ms, gate_ms) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, 1600, 256, '{}', '[]', ?, ?, 2, ?)",
                (
                    *(first + i, model, decision, setup, now_ms - 100 * (frames - i), verdict),
                    *("blank" if unknown[i] else None, int(ng[i])),
                    *(0.9 if ng[i] else float(scores[i]), float(brightness[i])),
                    *(float(contrast[i]), 10.0 + i % 10),
                ),
            )
            if ng[i]:
                connection.execute(
                    "INSERT INTO defects VALUES (NULL, ?, 0, ?, 0, 9, 0, 0, 3, 3, 3, 3, 0, 0.9, "
                    "'1 3')",
                    (first + i, "1" if dark[i] else "3"),
                )
            connection.execute(
                "INSERT INTO sightings (run, position, name, origin, inspection) "
                "VALUES (?, ?, ?, 'x', ?)",
                (run, i, f"{first + i:08d}/{i}.jpg", first + i),
            )
    connection.close()
    return {"NG": int(ng.sum()), "UNKNOWN": int(unknown.sum()), "OK": int((~ng & ~unknown).sum())}


@pytest.fixture(scope="module")
def line(serving, tmp_path_factory):
    """A service that was started again after a day on the line."""
    data = tmp_path_factory.mktemp("watch")
    with serving(data, ["--threads", "1"]) as service:
        service.end()
    counts = add_line(data / "store.db")
    with serving(data, ["--threads", "1"]) as service:
        service.counts = counts
        yield service


def test_counts_add_up(line):
    seen = line.client.get("/v1/watch").json()
    assert seen["counts"] == line.counts
    totals = seen["totals"]
    assert totals["seen"] == FRAMES == totals["ok"] + totals["ng"] + totals["unknown"]
    assert seen["reasons"] == {"blank": line.counts["UNKNOWN"]}
    assert sum(group["ng"] for group in seen["groups"]) == line.counts["NG"]
    assert len(seen["groups"]) == FRAMES // GROUP
    assert seen["latency_ms"]["gate"]["median"] == pytest.approx(14.5)
    assert seen["latency_ms"]["all"]["median"] == pytest.approx(16.5)
    assert seen["frames_per_s"] == pytest.approx(10, rel=0.3)
    few = line.client.get("/v1/watch?frames=120").json()
    assert (few["frames"], len(few["groups"]), few["chart"]) == (120, 2, None)


def test_more_defects_are_a_signal_and_a_dim_lamp_an_alarm_that_explains_itself(line):
    seen = line.client.get("/v1/watch").json()
    chart = seen["chart"]
    first_bad = DARK_FROM // GROUP
    assert chart["baseline_groups"] == BASELINE_GROUPS
    assert chart["centre"] == pytest.approx(0.05, abs=0.025)
    assert any(signal["group"] >= first_bad for signal in chart["signals"])
    alarms = {one["figure"]: one for one in seen["drift"] if one["alarm"]}
    assert set(alarms) == {"brightness"}
    assert "95 % of frames lie between" in alarms["brightness"]["words"]
    assert "lamp" in alarms["brightness"]["words"]
    assert "748 frames" in seen["reference"]
    families = text_string_to_metric_families(line.client.get("/metrics").text)
    told = {
        sample.labels["figure"]: sample.value
        for family in families
        if family.name == "steelsight_drift_alarm"
        for sample in family.samples
    }
    assert told == {"brightness": 1, "contrast": 0, "score": 0}


def test_a_plants_own_reference_counts(line):
    path = line.data / "reference.json"
    reference = _shipped()[load_bundle().id]
    darker = {name: list(values) for name, values in reference.figures.items()}
    darker["brightness"] = [value - 40 for value in darker["brightness"]]
    bundle = load_bundle()
    facts = {"source": "line 7, May", "frames": 748, "clear_frames": 600, "model": bundle.id}
    facts["decision"] = bundle.decision.sha256
    path.write_text(json.dumps(facts | {"figures": darker}))
    try:
        seen = line.client.get("/v1/watch").json()
        assert seen["reference"] == "line 7, May"
        assert not any(one["alarm"] for one in seen["drift"])
        assert {one["figure"] for one in seen["drift"]} == {"brightness", "contrast", "score"}
        # Of another decision, which may clear other frames: only light is compared, and it is said.
        path.write_text(json.dumps(facts | {"figures": darker, "decision": "0" * 64}))
        seen = line.client.get("/v1/watch").json()
        assert seen["reference"].startswith("line 7, May; its scores are of another")
        assert {one["figure"] for one in seen["drift"]} == {"brightness", "contrast"}
        path.write_text("{}")
        answer = line.client.get("/v1/watch")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad-request")
        assert "reference.json" in answer.json()["error"]["message"]
    finally:
        path.unlink()


def test_the_last_frames_become_the_reference(line, browser_page):
    path = line.data / "reference.json"
    try:
        assert line.client.post("/v1/watch/reference?frames=100").status_code == 422
        made = line.client.post("/v1/watch/reference?frames=200").json()
        assert "the 200 frames of this line" in made["source"]
        seen = line.client.get("/v1/watch").json()
        assert seen["reference"] == made["source"]
        assert not any(one["alarm"] for one in seen["drift"])  # the dim lamp is usual now
        browser_page.goto(f"{line.url}/watch")
        browser_page.wait_for_selector("html[data-ready]")
        browser_page.click("#take")
        browser_page.wait_for_selector("#reference:has-text('the 1000 frames')")
        browser_page.goto("about:blank")
    finally:
        path.unlink(missing_ok=True)


def test_the_page_says_what_is_wrong(line, browser_page):
    browser_page.goto(f"{line.url}/watch")
    browser_page.wait_for_selector("html[data-ready]")
    assert "lamp" in browser_page.inner_text("#alarms")
    assert "out of control" in browser_page.inner_text("#chart-words")
    assert browser_page.locator("#chart path.out").count() >= 1
    assert str(FRAMES) in browser_page.inner_text("#tiles")
    with browser_page.expect_response("**/v1/watch"):
        pass  # it asks again by itself
    browser_page.set_viewport_size({"width": 360, "height": 740})
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 360


def test_an_empty_line_is_explained(serving, tmp_path, browser_page):
    with serving(tmp_path / "data", ["--threads", "1"]) as service:
        seen = service.client.get("/v1/watch").json()
        assert (seen["frames"], seen["chart"], seen["latency_ms"]) == (0, None, {})
        assert service.client.post("/v1/watch/reference").status_code == 409
        browser_page.goto(f"{service.url}/watch")
        browser_page.wait_for_selector("#empty:not([hidden])")
        made = service.inspect(service.sample(1)).json()
        browser_page.wait_for_selector("#all:not([hidden])")
        seen = service.client.get("/v1/watch").json()
        assert seen["counts"][made["verdict"]] == 1
        assert seen["latency_ms"]["all"]["median"] > 0
        browser_page.goto("about:blank")


def test_a_large_store_is_quick(serving, tmp_path):
    with serving(tmp_path / "data", ["--threads", "1"]) as service:
        service.end()
    add_line(tmp_path / "data" / "store.db", frames=30_000)
    with serving(tmp_path / "data", ["--threads", "1"]) as service:
        service.client.get("/v1/watch")
        started = time.perf_counter()
        assert service.client.get("/v1/watch").json()["totals"]["seen"] == 30_000
        assert time.perf_counter() - started < 1
