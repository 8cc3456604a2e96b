"""Verdicts of people, over HTTP: the queue, undo, agreement, and a training set of them."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from steelsight.data.formats.registry import load
from steelsight.exports import StoredResults
from steelsight.masks import decode_rle, encode_rle, union_rle


@pytest.fixture(scope="module")
def frames(serving, tmp_path_factory):
    """A service that keeps all frames, and the answers to four faulty, one clean and a bad one."""
    with serving(tmp_path_factory.mktemp("review"), ["--keep", "all", "--threads", "1"]) as service:
        images = [service.sample(n) for n in (1, 2, 3, 4, 6)] + [service.sample(5)[:4000]]
        names = ["a.jpg", "b.jpg", "<c>.jpg", "d.jpg", "no suffix", "cut.jpg"]
        answers = [
            service.inspect(image, name, headers={"X-Coil": "7"}).json()
            for image, name in zip(images, names, strict=True)
        ]
        assert [one["verdict"] for one in answers] == ["NG"] * 4 + ["OK", "UNKNOWN"]
        service.images = images
        service.answers = answers
        yield service


def say(service, answer, verdict, who, **given):
    body = {"id": answer["id"], "verdict": verdict, "who": who, **given}
    return service.client.post("/v1/verdicts", json=body)


def queue(service, who, kinds="ng,unknown,ok"):
    return service.client.get("/v1/review/queue", params={"who": who, "kinds": kinds}).json()


def test_the_queue_is_of_one_person(frames):
    found = queue(frames, "first")
    assert found["waiting"] == {"OK": 1, "NG": 4, "UNKNOWN": 1}
    assert [one["id"] for one in found["items"]] == [one["id"] for one in frames.answers]
    assert found["items"][2]["image"] == "<c>.jpg"
    assert found["items"][0]["coil"] == "7"
    assert [one["verdict"] for one in queue(frames, "first", "unknown,ok")["items"]] == [
        "OK",
        "UNKNOWN",
    ]
    review = say(frames, frames.answers[0], "OK", "first").json()["review"]
    assert queue(frames, "first")["waiting"]["NG"] == 3
    other = queue(frames, "second")
    assert other["waiting"]["NG"] == 4
    assert other["items"][0]["n_said"] == 1
    assert "first" not in json.dumps(other)  # a second opinion should be one
    undone = frames.client.post(f"/v1/verdicts/{review}/undo", json={"who": "first"})
    assert undone.json() == {"id": frames.answers[0]["id"], "review": review}
    assert queue(frames, "first")["waiting"]["NG"] == 4
    for who in ("first", "second"):
        again = frames.client.post(f"/v1/verdicts/{review}/undo", json={"who": who})
        assert again.status_code == 404
    with StoredResults(frames.data / "store.db") as store:
        assert frames.answers[0]["id"] not in {one.inspection for one in store.reviews()}


def test_a_stored_verdict_has_all_that_was_said(frames):
    made = say(frames, frames.answers[1], "OK", " Ann <b> ", note="no\nfault")
    assert made.status_code == 201
    facts = made.json()
    assert (facts["who"], facts["machine"]) == ("Ann <b>", "NG")
    stored = frames.client.get(f"/v1/results/{frames.answers[1]['id']}").json()["reviews"][-1]
    assert (stored["verdict"], stored["who"], stored["note"]) == ("OK", "Ann <b>", "no\nfault")
    found = frames.client.get("/v1/results?overruled=true").json()["results"]
    assert [one["id"] for one in found] == [frames.answers[1]["id"]]
    frames.client.post(f"/v1/verdicts/{facts['review']}/undo", json={"who": "Ann <b>"})
    assert frames.client.get("/v1/results?overruled=true").json()["matching"] == 0
    everything = frames.client.get("/v1/results").json()["matching"]
    assert frames.client.get("/v1/results?overruled=false").json()["matching"] == everything


WHOLE = {"labels": {"1": "1 5"}}


@pytest.mark.parametrize(
    ("which", "verdict", "given", "status"),
    [
        (0, "NG", {"labels": {"9": "1 5"}}, 422),
        (0, "NG", {"labels": {"1": "1 5 3 2"}}, 422),
        (0, "NG", {"labels": {"1": "0 5"}}, 422),
        (0, "NG", {"labels": {"1": "409600 2"}}, 422),
        (0, "NG", {"labels": {"1": "x"}}, 422),
        (0, "OK", WHOLE, 422),
        (0, "UNKNOWN", WHOLE, 422),
        (5, "NG", WHOLE, 422),
        (0, "MAYBE", {}, 422),
        (0, "OK", {"note": "x" * 10_001}, 422),
        (0, "OK", {"more": 1}, 422),
    ],
)
def test_what_does_not_fit_is_refused(frames, which, verdict, given, status):
    answer = say(frames, frames.answers[which], verdict, "Ann", **given)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"code", "message", "id"}
    assert queue(frames, "Ann")["waiting"] == {"OK": 1, "NG": 4, "UNKNOWN": 1}


@pytest.mark.parametrize(
    "body", [{"id": 10**6}, {"id": 0}, {"id": 1 << 64}, {"who": " "}, {"who": ""}]
)
def test_who_and_what_must_be_there(frames, body):
    said = {"id": frames.answers[0]["id"], "verdict": "OK", "who": "Ann"} | body
    assert frames.client.post("/v1/verdicts", json=said).status_code in (404, 422)


def test_people_are_compared_and_become_a_training_set(frames, tmp_path):
    assert frames.client.post("/v1/review/export").status_code == 409
    a, b, c, d, clean, cut = frames.answers
    drawn = np.zeros((256, 1600), bool)
    drawn[20:60, 300:420] = True
    mine = {"2": encode_rle(drawn), "3": ""}
    for answer, verdict, who, given in [
        (a, "NG", "Ann", {}),  # the model's regions stand
        (b, "NG", "Ann", {"labels": mine}),
        (c, "OK", "Ann", {}),
        (c, "NG", "Bob", {}),  # disputed
        (d, "OK", "Ann", {}),
        (d, "OK", "Bob", {}),
        (clean, "OK", "Bob", {}),
        (cut, "UNKNOWN", "Bob", {}),
        (b, "NG", "Bob", {"labels": {"2": encode_rle(np.roll(drawn, 60, axis=1))}}),
        (b, "NG", "Ann", {"labels": mine}),  # once more: the last one counts
    ]:
        assert say(frames, answer, verdict, who, **given).status_code == 201
    found = frames.client.get("/v1/review/agreement").json()
    assert (found["model"]["n"], found["model"]["agree"]) == (6, 5)
    by_person = {one["who"]: (one["n"], one["agree"]) for one in found["by_reviewer"]}
    assert by_person == {"Ann": (4, 2), "Bob": (5, 4)}
    (pair,) = found["pairs"]
    assert (pair["n"], pair["agree"], pair["dice"]["n"]) == (3, 2, 1)
    assert pair["dice"]["mean"] == pytest.approx(0.5)

    first, again = (frames.client.post("/v1/review/export").content for _ in range(2))
    assert first == again
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        archive.extractall(tmp_path / "set")
    label_set = load(tmp_path / "set")
    by_content = {
        (tmp_path / "set" / "images" / name).read_bytes(): labels
        for name, labels in label_set.frames.items()
    }
    assert len(by_content) == 4
    images = frames.images
    assert by_content[images[3]].clean
    assert by_content[images[4]].clean
    of_model = {}
    for defect in a["defects"]:
        of_model.setdefault(defect["class"], []).append(defect["rle"])
    assert by_content[images[0]].rle_by_class == {k: union_rle(v) for k, v in of_model.items()}
    assert set(by_content[images[1]].rle_by_class) == {"2"}
    mask_hw = decode_rle(by_content[images[1]].rle_by_class["2"], (1600, 256))
    assert (mask_hw == drawn).all()
    assert by_content[images[1]].attributes["coil"] == "7"
    left_out = (tmp_path / "set" / "left_out.csv").read_text()
    assert "disputed" in left_out
    assert "nobody could tell" in left_out
    assert "clean: 2\nfaulty: 2\n" in (tmp_path / "set" / "README.txt").read_text()
    checked = subprocess.run(
        [
            *(sys.executable, "-c", "from steelsight.cli import main; main()", "data", "check"),
            *(str(tmp_path / "set"), "--out", str(tmp_path / "check")),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert checked.returncode in (0, 3), checked.stderr
    assert "ERROR" not in checked.stdout


def test_frames_that_were_not_kept_do_not_wait(serving, tmp_path):
    with serving(tmp_path / "data", ["--keep", "none", "--threads", "1"]) as service:
        service.inspect(service.sample(1))
        assert queue(service, "Ann")["items"] == []


def test_the_queue_is_quick_in_a_large_store(tmp_path):
    """100,000 inspections, of which 5,000 were kept: the index of the kept ones is used."""
    import time

    import apsw

    from steelsight.service.review import Reviews
    from steelsight.store.schema import open_writer

    path = tmp_path / "store.db"
    connection = open_writer(path)
    connection.execute(
        """
        PRAGMA foreign_keys=OFF; BEGIN;
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
        INSERT INTO inspections (id, model, decision, setup, inspected_ms, verdict, reason,
          n_defects, defect_area_px, faulty_probability, class_probabilities, notes)
        SELECT i, 1, 1, 1, i, iif(i % 20, 'OK', 'NG'), NULL, 0, 0, 0.5, '{}', '[]' FROM n;
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
        INSERT INTO sightings (run, position, name, origin, inspection, kept)
        SELECT 1, i, i || '.jpg', 'x', i, iif(i % 20, NULL, 1) FROM n;
        COMMIT;
        """
    )
    assert isinstance(connection, apsw.Connection)
    connection.close()
    with Reviews(path) as store:
        started = time.perf_counter()
        assert store.waiting("Ann") == {"OK": 0, "NG": 5000, "UNKNOWN": 0}
        assert len(list(store.queue("Ann", {"NG", "OK"}, 50))) == 50
        took_s = time.perf_counter() - started
    assert took_s < 0.5
