"""The HTTP interface of a real service: answers, errors, and what is not let through."""

import base64
import hashlib
import json
import math
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from steelsight.engine import Inspector
from steelsight.exports import StoredResults
from steelsight.masks import decode_rle

KEYS = {"code", "message", "id"}
HOSTILE = [
    "<script>alert(1)</script>.jpg",
    "a\u202egpj.exe",
    "quote\"'`;.jpg",
    "new\nline\r\n.jpg",
    "../../etc/passwd",
    "C:\\windows\\x.jpg",
    "ä" * 300 + ".jpg",
    "\x00.jpg",
]


@pytest.fixture(scope="module")
def image(service):
    return service.sample(1)


def error_of(response):
    """The error of an answer, which must have the form that is documented."""
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == KEYS
    assert error["id"] == response.headers["x-request-id"]
    assert "\n" not in error["message"]
    assert "Traceback" not in response.text
    return error


def test_the_answer_is_that_of_the_engine(service, image):
    answer = service.inspect(image, "coil 7/frame 1.jpg", headers={"X-Coil": "7"}).json()
    active = service.client.get("/v1/models").json()["active"]
    engine = active["engine"].partition("-")[0]
    expected = Inspector.load(engine=engine, threads=2).inspect(image, "coil 7/frame 1.jpg")
    expected = expected.to_json(timing=False)
    assert expected["defects"]
    assert {key: answer[key] for key in expected} == expected
    assert set(answer["milliseconds"]) >= {"decode", "gate", "decide"}
    stored = service.client.get(f"/v1/results/{answer['id']}").json()
    assert {key: stored[key] for key in expected} == expected
    assert service.client.get(f"/v1/results/{answer['id']}/frame").content == image


def test_every_frame_has_its_line(service, image):
    before = service.client.get("/v1/results").json()
    with ThreadPoolExecutor(4) as senders:
        frames = [service.sample(n) for n in (1, 2, 6)] + [b"no image", image[:2000]]
        answers = list(senders.map(lambda n: service.inspect(frames[n % 5], f"{n}.jpg"), range(15)))
    assert {answer.status_code for answer in answers} == {200}
    verdicts = [answer.json()["verdict"] for answer in answers]
    after = service.client.get("/v1/results?limit=1000").json()
    assert after["matching"] == before["matching"] + 15 == len(after["results"])
    for verdict in ("OK", "NG", "UNKNOWN"):
        assert after["counts"][verdict] - before["counts"][verdict] == verdicts.count(verdict)
    assert verdicts[3::5] == ["UNKNOWN"] * 3
    assert {answer.json()["reason"] for answer in answers[3::5]} == {"not-an-image"}


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_kept_harmless(service, image, name):
    answer = service.inspect(image, name)
    assert answer.status_code == 200
    told = answer.json()["image"]
    assert 0 < len(told) <= 255
    assert not any(ord(letter) < 32 for letter in told)
    assert ".." not in told.split("/")
    assert not told.startswith("/")
    lines = service.client.get("/v1/results?limit=1000").json()["results"]
    assert told in {line["image"] for line in lines}


def test_pictures_are_of_the_answer(service, image):
    url = "/v1/inspect?overlay=true&masks=png"
    headers = {"Content-Type": "image/jpeg"}
    answer = service.client.post(url, content=image, headers=headers).json()
    overlay = np.frombuffer(base64.b64decode(answer["overlay_jpeg"]), np.uint8)
    height, width = cv2.imdecode(overlay, cv2.IMREAD_COLOR).shape[:2]
    assert (width, height) >= tuple(answer["size_wh"])
    plain = service.inspect(image).json()
    assert all("rle" not in defect for defect in answer["defects"])
    assert set(answer["masks_png"]) == {defect["class"] for defect in plain["defects"]}
    for class_id, png in answer["masks_png"].items():
        found = cv2.imdecode(np.frombuffer(base64.b64decode(png), np.uint8), cv2.IMREAD_UNCHANGED)
        regions = [d["rle"] for d in plain["defects"] if d["class"] == class_id]
        expected = sum(decode_rle(rle, size_wh=tuple(plain["size_wh"])) for rle in regions)
        assert ((found > 0) == (expected > 0)).all()


def test_a_batch_comes_back_in_order(service, image):
    names = [f"{n}.jpg" for n in range(12)]
    contents = [image if n % 3 else b"junk" for n in range(12)]
    files = [("frames", (name, data)) for name, data in zip(names, contents, strict=True)]
    answer = service.client.post("/v1/inspect/batch", files=files)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["image"] for line in lines] == names
    assert [line["position"] for line in lines] == list(range(12))
    assert [line["verdict"] == "UNKNOWN" for line in lines] == [n % 3 == 0 for n in range(12)]
    assert all(line["id"] for line in lines)


def test_a_frame_that_is_too_large_costs_itself_alone(service, image):
    files = [("frames", (name, data)) for name, data in (("a", image), ("b", bytes(65 << 20)))]
    answer = service.client.post("/v1/inspect/batch", files=[*files, ("frames", ("c", image))])
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["image"] for line in lines] == ["a", "b", "c"]
    assert [line.get("verdict") for line in lines] == ["NG", None, "NG"]
    assert lines[1]["error"]["code"] == "too-large"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "text/html"}, 415, "no-image-type"),
        ({"Content-Encoding": "gzip"}, 415, "encoded"),
        ({"Content-Digest": "sha-256=:AAAA:"}, 400, "digest-mismatch"),
        ({"Content-Digest": "md5=:AAAA:"}, 400, "no-digest"),
        ({"Content-Digest": "sha-256=:!!:"}, 400, "no-digest"),
        ({"X-Position": "-1"}, 422, "not-valid"),
    ],
)
def test_what_is_not_as_told_is_refused(service, image, headers, status, code):
    answer = service.inspect(image, headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_digest_that_fits_is_accepted(service, image, algorithm):
    digest = base64.b64encode(hashlib.new(algorithm, image).digest()).decode()
    header = f"{algorithm.replace('sha', 'sha-')}=:{digest}:"
    assert service.inspect(image, headers={"Content-Digest": header}).status_code == 200


def test_a_deadline_is_kept(service, image):
    fresh = cv2.imencode(".png", np.random.default_rng(1).integers(0, 255, (256, 1600), np.uint8))[
        1
    ]
    started = time.monotonic()
    answer = service.client.post(
        "/v1/inspect?deadline_ms=1",
        content=fresh.tobytes(),
        headers={"Content-Type": "image/png"},
    )
    assert (answer.json()["verdict"], answer.json()["reason"]) == ("UNKNOWN", "timeout")
    assert time.monotonic() - started < 5
    assert service.client.post("/v1/inspect?deadline_ms=0", content=b"").status_code == 422


def test_too_much_is_refused_before_it_is_read(service):
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            f"POST /v1/inspect HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: image/png\r\n"
            f"Content-Length: {1 << 40}\r\n\r\n".encode()
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"too-large" in answer


def test_too_much_without_a_length_is_cut_off(service):
    def endless():
        for _ in range(70):
            yield bytes(1 << 20)

    answer = service.client.post(
        "/v1/inspect", content=endless(), headers={"Content-Type": "image/png"}
    )
    assert (answer.status_code, error_of(answer)["code"]) == (413, "too-large")


def test_a_body_that_ends_early_is_no_frame(service):
    before = service.client.get("/v1/results?limit=1").json()["matching"]
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            f"POST /v1/inspect HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: image/png\r\n"
            "Content-Length: 1000\r\n\r\nhalf".encode()
        )
    assert service.client.get("/v2/health/live").status_code == 200
    assert service.client.get("/v1/results?limit=1").json()["matching"] == before


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_pages_of_other_sites_reach_nothing(service, image, headers):
    answer = service.inspect(image, headers=headers)
    assert answer.status_code == 403
    assert error_of(answer)["code"] in ("foreign-host", "foreign-origin")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/none", 404),
        ("DELETE", "/v1/results", 405),
        ("GET", "/v1/results/0", 404),
        ("GET", "/v1/results/99999999999999999999", 404),
        ("GET", "/v1/results/x", 422),
        ("GET", "/v1/results?limit=0", 422),
        ("GET", "/v1/results?reason=none", 422),
        ("GET", "/v1/results/1/frame/../../../etc", 404),
        ("GET", "/static/..%2f..%2froom.py", 404),
        ("GET", "/v1/samples/7", 404),
        ("POST", "/v1/inspect/batch", 400),
    ],
)
def test_errors_have_one_form(service, method, path, status):
    answer = service.client.request(method, path)
    assert answer.status_code == status
    error_of(answer)


def test_questions_are_answered(service, image):
    made = service.inspect(image, "asked.jpg", headers={"X-Coil": quote("coil ä")}).json()
    types = {defect["class"] for defect in made["defects"]}
    ask = service.client.get
    (line,) = ask("/v1/results", params={"coil": "coil ä"}).json()["results"]
    assert line["id"] == made["id"]
    found = ask("/v1/results", params={"type": min(types), "limit": 1000}).json()
    assert made["id"] in {one["id"] for one in found["results"]}
    assert all(min(types) in one["defects_by_type"] for one in found["results"])
    clean = ask("/v1/results?verdict=OK&limit=1000").json()
    assert {one["verdict"] for one in clean["results"]} <= {"OK"}
    with StoredResults(service.data / "store.db") as store:
        assert ask("/v1/results").json()["matching"] == store.count_inspections()
    (run,) = ask("/v1/runs").json()["runs"]
    assert run["seen"] == run["ok"] + run["ng"] + run["unknown"] == store_lines(service)
    assert run["model"] == made["model"]


def store_lines(service):
    with StoredResults(service.data / "store.db") as store:
        return store.count_inspections()


def test_figures_add_up(service, image):
    service.inspect(image)
    families = {
        family.name: family
        for family in text_string_to_metric_families(service.client.get("/metrics").text)
    }
    frames = sum(
        sample.value
        for sample in families["steelsight_frames"].samples
        if sample.name.endswith("_total")
    )
    assert frames == store_lines(service)
    requests = [
        sample
        for sample in families["steelsight_requests"].samples
        if sample.name.endswith("_total")
    ]
    by_path = {(s.labels["path"], s.labels["status"]): s.value for s in requests}
    assert by_path["/v1/inspect", "200"] >= 1
    # Of paths that strangers ask for there must not be endlessly many.
    assert {path for path, _ in by_path} <= {
        "other",
        *(route for route in service.client.get("/openapi.json").json()["paths"]),
        *(path for path, _ in by_path if path.startswith(("/", "/static/{name}"))),
    }
    assert not any("none" in path for path, _ in by_path)
    steps = {
        sample.labels["step"]
        for sample in families["steelsight_step_seconds"].samples
        if "step" in sample.labels
    }
    assert steps >= {"decode", "gate", "decide"}
    assert not math.isnan(families["steelsight_queue_frames"].samples[0].value)


def test_models_are_changed_only_with_a_token(service):
    answer = service.client.post("/v1/models/activate", json={"name": "default"})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "no-token")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"gate": {"clear_below": 2}}, 400),
        ({"x": {}}, 400),
        ({"types": {"1": {"pixel_from": 0.9}}}, 200),
    ],
)
def test_thresholds_are_tried(service, image, changes, status):
    made = service.inspect(image).json()
    before = store_lines(service)
    answer = service.client.post(f"/v1/explore/{made['id']}", json=changes)
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["id"] == made["id"]
        assert answer.json()["decision"] != made["decision"]
    assert service.client.post("/v1/explore/123456", json={}).status_code == 404
    assert store_lines(service) == before


def test_samples_are_the_same_every_time(service):
    listed = service.client.get("/v1/samples").json()
    assert [one["name"] for one in listed] == [f"sample-{n}.jpg" for n in range(1, 7)]
    for one in listed:
        first, again = (service.client.get(one["url"]).content for _ in range(2))
        assert first == again


def test_the_description_names_every_route(service):
    description = service.client.get("/openapi.json").json()
    for path in ("/v1/inspect", "/v1/inspect/batch", "/v2/models/{name}/infer", "/metrics"):
        assert path in description["paths"]
    assert description["paths"]["/v1/inspect"]["post"]["responses"]["200"]["content"][
        "application/json"
    ]["example"]["verdict"]
