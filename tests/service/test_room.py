"""The engine room: every frame that is taken is answered once, and is on the disk before."""

import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event

import pytest

from steelsight.bundle import DEFAULT_BUNDLE, load_bundle
from steelsight.data.synthetic import CoilConfig, draw_frame, encode_jpeg
from steelsight.decisions import load_decision
from steelsight.defects import Reason, Verdict
from steelsight.engine import Inspector
from steelsight.engine.cascade import SETTLED
from steelsight.errors import InputError, SteelsightError, StoreError
from steelsight.exports import StoredResults
from steelsight.service import room as module
from steelsight.service.room import QueueFullError, Room, RoomSettings, sent_name
from steelsight.service.watch import REFERENCE, reference_of

COIL = CoilConfig(frames=40, seed=7, faulty_share=1.0)


@pytest.fixture(scope="module")
def images():
    """Four frames that are NG for the shipped bundle, four that are OK."""
    inspector = Inspector.load(engine="onnxruntime", threads=1)
    found = {Verdict.NG: [], Verdict.OK: [], Verdict.UNKNOWN: []}
    for n in range(40):
        image = encode_jpeg(draw_frame(COIL, n, with_defects=n % 2 == 0).grey_hw)
        found[inspector.inspect(image, "").verdict].append(image)
        if min(len(found[Verdict.NG]), len(found[Verdict.OK])) >= 4:
            return [*found[Verdict.NG][:4], *found[Verdict.OK][:4]]
    pytest.fail("too few frames of a kind")


@pytest.fixture
def settings(tmp_path):
    return RoomSettings(data=tmp_path / "data", engine="onnxruntime", threads=1, queue_frames=4)


@pytest.fixture
def held(monkeypatch):
    """Once the event is cleared frames stay in work until it is set."""
    go_on, original = Event(), Inspector.judge
    go_on.set()

    def judge(self, taken):
        assert go_on.wait(30)
        return original(self, taken)

    monkeypatch.setattr(Inspector, "judge", judge)
    yield go_on
    go_on.set()


def stored(room_or_path):
    """Lines of the store, in the order in which they were added."""
    path = getattr(room_or_path, "store_path", room_or_path)
    with StoredResults(path) as store, store.one_state():
        return list(store.whole())


def wait_until(holds):
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_an_answer_is_that_of_the_engine_and_on_the_disk(settings, images):
    told = []
    with Room(settings, told.append) as room:
        answer = room.submit(images[0], "a/b.jpg", coil="7", position=12).future.result(30)
        (line,) = stored(room)
        inspector = room.active.inspector
        expected = inspector.inspect(images[0], "a/b.jpg")
    assert answer.inspection.to_json(timing=False) == expected.to_json(timing=False)
    assert told == [answer.inspection]
    assert (line.row.id, line.row.coil) == (answer.id, "7")
    assert sent_name(line.row.name) == "a/b.jpg" != line.row.name
    expected = replace(expected, image=line.row.name)
    assert line.inspection.to_json(timing=False) == expected.to_json(timing=False)
    with StoredResults(settings.data / "store.db") as store:
        whole = store.inspection(answer.id)
        assert whole.sightings[0].position == 12
        assert store.runs()[0].complete


def test_nothing_takes_the_place_of_another_frame(settings, images):
    with Room(settings) as room:
        first = room.submit(images[0], "same.jpg").future.result(30)
        again = room.submit(images[0], "same.jpg").future.result(30)
        other = room.submit(images[5], "same.jpg").future.result(30)
        lines = stored(room)
    assert again.id == first.id  # the same frame: known
    assert again.inspection.to_json(timing=False) == first.inspection.to_json(timing=False)
    assert other.id != first.id
    assert [sent_name(line.row.name) for line in lines] == ["same.jpg"] * 3
    assert len({line.row.name for line in lines}) == 3


def test_a_full_queue_takes_no_more_and_loses_none(settings, images, held):
    with Room(settings) as room:
        held.clear()
        jobs = [room.submit(images[0], "first.jpg")]
        wait_until(lambda: room.waiting == 0)
        jobs += [room.submit(images[n], f"{n}.jpg") for n in range(1, 5)]
        for refusing in (lambda: room.submit(images[6], "6.jpg"), room.check_place):
            with pytest.raises(QueueFullError, match="4 frames wait") as refused:
                refusing()
            assert refused.value.retry_after_s >= 1
        held.set()
        answers = [job.future.result(30) for job in jobs]
        assert len(stored(room)) == 5 == len({answer.id for answer in answers})


@pytest.mark.parametrize("in_work", [True, False], ids=["in-work", "waiting"])
def test_a_deadline_gives_one_unknown_and_nothing_else(settings, images, held, in_work):
    told = []
    with Room(settings, told.append) as room:
        held.clear()
        before = None if in_work else room.submit(images[1], "before.jpg")
        if before:
            wait_until(lambda: room.waiting == 0)
        job = room.submit(images[0], "late.jpg", deadline_ms=1)
        if in_work:
            wait_until(lambda: room.waiting == 0)
        time.sleep(0.01)
        room.expire(job)
        inspection = job.future.result(30).inspection
        room.expire(job)  # nothing more
        assert (inspection.verdict, inspection.reason) == (Verdict.UNKNOWN, Reason.TIMEOUT)
        assert "within 1 ms" in inspection.detail
        held.set()
        if before:
            before.future.result(30)
        wait_until(lambda: room._in_work == 0)
        late = [line for line in stored(room) if line.row.name.endswith("late.jpg")]
        assert [line.row.verdict for line in late] == [Verdict.UNKNOWN]
        assert [one.image for one in told].count("late.jpg") == 1
        # The next time it is looked at: being late says nothing of the frame.
        assert room.submit(images[0], "late.jpg").future.result(30).inspection.reason is None


def test_a_frame_whose_turn_comes_too_late_is_not_looked_at(settings, images, held):
    with Room(settings) as room:
        held.clear()
        room.submit(images[1], "before.jpg")
        wait_until(lambda: room.waiting == 0)
        job = room.submit(images[0], "late.jpg", deadline_ms=1)
        time.sleep(0.01)
        held.set()
        assert job.future.result(30).inspection.reason is Reason.TIMEOUT


def test_closing_answers_what_was_taken(settings, images, held):
    room = Room(settings)
    held.clear()
    jobs = [room.submit(images[n], f"{n}.jpg") for n in range(3)]
    with ThreadPoolExecutor(1) as beside:
        closed = beside.submit(room.close)
        wait_until(lambda: not room.is_ready)
        with pytest.raises(QueueFullError, match="shutting down"):
            room.submit(images[4], "4.jpg")
        held.set()
        closed.result(30)
    assert all(job.future.done() and job.future.result().id for job in jobs)
    assert len(stored(settings.data / "store.db")) == 3
    room.close()


def test_without_the_disk_there_is_no_verdict(settings, images, monkeypatch):
    told = []
    with Room(settings, told.append) as room:

        def fails(group):
            return [StoreError("the disk is full")] * len(group)

        monkeypatch.setattr(room._store, "_commit", fails)
        with pytest.raises(SteelsightError, match="full"):
            room.submit(images[0], "a.jpg").future.result(30)
        assert told == []
        monkeypatch.undo()


@pytest.mark.parametrize(("keep", "count"), [("all", 8), ("none", 0), ("review", 4)])
def test_kept_frames_are_those_asked_for(settings, images, keep, count, monkeypatch):
    monkeypatch.setattr(module, "ONE_OK_IN", 1 << 32)
    with Room(replace(settings, keep=keep, queue_frames=16)) as room:
        jobs = [room.submit(image, f"{n}.jpg") for n, image in enumerate(images)]
        answers = [job.future.result(60) for job in jobs]
        faulty = [one.inspection.verdict is not Verdict.OK for one in answers]
        files = [path for path in (settings.data / "frames").rglob("*") if path.is_file()]
        assert len(files) == (sum(faulty) if keep == "review" else count)
        assert sum(faulty) == 4
        assert {path.read_bytes() for path in files} <= set(images)
        for line in stored(room):
            with StoredResults(room.store_path) as store:
                origin = store.inspection(line.row.id).origin
            image = images[int(sent_name(line.row.name)[0])]
            was_kept = keep == "all" or (keep == "review" and line.row.verdict is not Verdict.OK)
            assert room.kept(origin) == (image if was_kept else None)
        assert room.kept(str(settings.data / "store.db")) is None
        assert room.kept(str(settings.data / "frames" / ".." / "store.db")) is None


def test_a_sample_of_the_ok_frames_is_kept(settings, images, monkeypatch):
    monkeypatch.setattr(module, "ONE_OK_IN", 1)
    with Room(settings) as room:
        room.submit(images[6], "ok.jpg").future.result(30)
        assert len(list((settings.data / "frames").rglob("*.jpg"))) == 1


def test_other_thresholds_are_those_of_a_decision_file(settings, images, tmp_path):
    changes = {"gate": {"clear_below": 0.1}, "types": {"3": {"pixel_from": 0.6, "min_area_px": 30}}}
    with Room(settings) as room:
        answers = [room.submit(image, "a.jpg").future.result(30) for image in images[:4]]
        explored = [room.explore(answer.id, changes) for answer in answers]
        same = room.explore(answers[0].id, {})
        lines = len(stored(room))
    text = (DEFAULT_BUNDLE / "decision.toml").read_text()
    of_3 = "[types.3]\nlabel_from = 0.484\npixel_from = 0.11920292\nmin_area_px = 0"
    assert of_3 in text
    text = text.replace(of_3, "[types.3]\nlabel_from = 0.484\npixel_from = 0.6\nmin_area_px = 30")
    file = tmp_path / "other.toml"
    file.write_text(text.replace("clear_below = 0.15148", "clear_below = 0.1"))
    assert load_decision(file, list("1234")).types["3"].pixel_from == 0.6
    inspector = Inspector.load(decision=file, engine="onnxruntime", threads=1)
    different = 0
    for image, answer, found in zip(images, answers, explored, strict=False):
        expected = inspector.inspect(image, "a.jpg").to_json(timing=False)
        facts = found.to_json(timing=False)
        assert facts.pop("decision") != answer.inspection.decision
        del expected["decision"]
        assert facts == expected
        different += facts["defects"] != answer.inspection.to_json()["defects"]
    assert different  # else the thresholds were not used
    assert same.to_json()["defects"] == answers[0].inspection.to_json()["defects"]
    assert lines == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": {"min_contrast": 0}}, "gate and types"),
        ({"gate": 3}, "gate: expected a table"),
        ({"gate": {"x": 1}}, "clear_below, ng_from"),
        ({"types": {"9": {}}}, "types: expected"),
        ({"types": {"1": 0.5}}, "table"),
        ({"gate": {"clear_below": 0.9}}, "clear_below"),
        ({"gate": {"clear_below": float("nan")}}, "clear_below"),
        ({"types": {"1": {"pixel_from": "much"}}}, "pixel_from"),
        ({"types": {"1": {"x\n[gate]": 1}}}, "leave it out"),
        ({"types": {"1": {"pixel_from": True}}}, "number"),
    ],
)
def test_impossible_thresholds_are_refused(settings, images, changes, words):
    with Room(settings) as room:
        answer = room.submit(images[0], "a.jpg").future.result(30)
        with pytest.raises(InputError, match=words):
            room.explore(answer.id, changes)


def test_only_the_last_frames_are_at_hand(settings, images, monkeypatch):
    monkeypatch.setattr(module, "RECENT_FRAMES", 2)
    monkeypatch.setattr(module, "EXPLORED_FRAMES", 1)
    with Room(settings) as room:
        ids = [room.submit(image, "a.jpg").future.result(30).id for image in images[:3]]
        with pytest.raises(LookupError):
            room.explore(ids[0], {})
        assert [room.explore(n, {}).verdict for n in (*ids[1:], ids[1])] == [Verdict.NG] * 3
        assert len(room._remembered._masks) == 1


def test_a_damaged_frame_is_unknown_under_any_thresholds(settings, images):
    with Room(settings) as room:
        answer = room.submit(images[0][:3000], "cut.jpg").future.result(30)
        assert answer.inspection.reason is Reason.TRUNCATED
        assert room.explore(answer.id, {"gate": {"clear_below": 0.1}}).reason is Reason.TRUNCATED


@pytest.fixture
def other_bundle(tmp_path):
    """The shipped bundle with another decision."""
    folder = tmp_path / "other"
    shutil.copytree(DEFAULT_BUNDLE, folder)
    return folder


def test_switching_models_ends_nothing(settings, images, other_bundle):
    with Room(replace(settings, queue_frames=8)) as room:
        before = room.active
        jobs = [room.submit(image, f"{n}.jpg") for n, image in enumerate(images[:3])]
        after = room.activate(other_bundle)
        jobs.append(room.submit(images[3], "3.jpg"))
        assert all(job.future.result(30).inspection.verdict for job in jobs)
        assert room.active is after is not before
        assert after.run != before.run
        assert len(stored(room)) == 4


def test_a_bad_bundle_changes_nothing(settings, images, other_bundle):
    damaged = other_bundle / "gate.int8.onnx"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with Room(settings) as room:
        before = room.active
        for folder in (other_bundle, other_bundle / "none"):
            with pytest.raises(SteelsightError):
                room.activate(folder)
        assert room.active is before
        assert room.submit(images[0], "a.jpg").future.result(30).inspection.verdict is Verdict.NG
        assert len(json.loads(json.dumps(before.to_json()))["classes"]) == 4


def test_a_shadow_judges_along_and_disturbs_nothing(settings, images, other_bundle, monkeypatch):
    with Room(replace(settings, shadow=other_bundle)) as room:
        for n in (0, 6):
            room.submit(images[n], "a.jpg").future.result(30)
        wait_until(lambda: room.shadow.frames == 2)
        assert room.shadow_counts == {"NG NG": 1, "OK OK": 1}
        monkeypatch.setattr(room.shadow.inspector, "inspect", lambda *_: 1 / 0)
        assert room.submit(images[1], "b.jpg").future.result(30).inspection.verdict is Verdict.NG
    assert room.shadow.frames == 2


def test_a_folder_that_cannot_be_written_is_told(settings, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="--data"):
        Room(replace(settings, data=tmp_path / "file" / "data"))


def test_the_shipped_first_look_in_the_service(settings, tmp_path):
    """Explored as inspected, also where it settles the frame."""
    coil = CoilConfig(6, 3, 0.5, (1600, 256))
    frames = [encode_jpeg(draw_frame(coil, n).grey_hw) for n in range(6)]
    settled = 0
    # A drawn frame is less familiar to it than a real one.
    text = load_bundle(decision=Path("first-look")).decision.text
    decision = tmp_path / "first-look.toml"
    decision.write_text(re.sub(r"(\[first_look\]\nclear_below = )\S+", r"\g<1>0.1", text))
    with Room(replace(settings, decision=decision)) as room:
        assert room.active.to_json()["first_look"]["clear_below"] > 0
        for n, frame in enumerate(frames):
            answer = room.submit(frame, f"{n}.jpg").future.result(60)
            again = room.explore(answer.id, {})
            assert again.verdict is answer.inspection.verdict
            assert again.faulty_probability == answer.inspection.faulty_probability
            assert again.notes == answer.inspection.notes
            settled += SETTLED in again.notes
        assert 0 < settled < 6
        assert room.explore(answer.id, {"gate": {"ng_from": 0.9}}).decision != again.decision
        with pytest.raises(InputError, match=r"first_look\.clear_below .* must not exceed"):
            room.explore(answer.id, {"gate": {"clear_below": 0.01}})


def test_drift_is_not_measured_against_scores_of_another_network(settings):
    with Room(settings) as room:
        shipped = reference_of(room, room.active)
        assert shipped is not None
        decision = room.active.inspector.bundle.decision.sha256
        assert room.active.to_json()["first_look"] is None
    own = asdict(shipped) | {"source": "a good day", "decision": decision}
    (settings.data / REFERENCE).write_text(json.dumps(own))
    with Room(settings) as room:
        kept = reference_of(room, room.active)
        assert (kept.source, set(kept.figures)) == (
            "a good day",
            {"brightness", "contrast", "score"},
        )
    behind = replace(settings, decision=Path("first-look"))
    with Room(behind) as room:
        kept = reference_of(room, room.active)
        assert set(kept.figures) == {"brightness", "contrast"}
        assert kept.source.startswith("a good day; its scores are of another")
        (settings.data / REFERENCE).unlink()
        # The shipped one is of stage 1 alone.
        assert reference_of(room, room.active) is None
