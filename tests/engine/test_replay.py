"""A stored verdict derived again: the same to the last bit, or exactly what is another."""

import functools
import hashlib
import json
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib import util
from pathlib import Path

import apsw
import pytest

from steelsight.bundle import DEFAULT_BUNDLE, load_bundle
from steelsight.data.synthetic import CoilConfig, write_severstal
from steelsight.decoders import Decoders
from steelsight.defects import Reason, Verdict
from steelsight.engine import Inspector, runtime
from steelsight.engine.batch import identity_of, inspect_sources, recording
from steelsight.engine.cuda import Cuda
from steelsight.engine.replay import Difference, replay
from steelsight.engine.sources import Sources
from steelsight.errors import EngineError, InputError, StoreError
from steelsight.imaging import DecodePolicy
from steelsight.store.queries import Results

MODULE = sys.modules["steelsight.engine.replay"]


@pytest.fixture(scope="module", autouse=True)
def decoders() -> Iterator[Decoders]:
    """Networks and decoders are there once for these tests, not for each replay."""
    load_once = functools.cache(runtime.load_runtime)
    with Decoders(1) as shared, pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "Decoders", lambda _: nullcontext(shared))
        patch.setattr("steelsight.engine.cascade.load_runtime", load_once)
        yield shared


def draw(folder: Path) -> Path:
    config = CoilConfig(frames=8, seed=5, faulty_share=0.7, size_wh=(320, 128))
    frames = write_severstal(config, folder / "drawn") / "images"
    frames.rename(folder / "frames")
    frames = folder / "frames"
    (frames / "cut.jpg").write_bytes((frames / "synthetic-000000.jpg").read_bytes()[:3000])
    (frames / "empty.jpg").touch()
    (frames / "named.jpg").mkdir()
    with zipfile.ZipFile(folder / "frames.zip", "w") as archive:
        archive.write(frames / "synthetic-000001.jpg", "line1/1.jpg")
        (frames / "synthetic-000001.jpg").unlink()
        archive.writestr("cut.jpg", b"\xff\xd8\xff and no more")
    return frames


def run(store: Path, *inputs: Path, **options: object) -> Path:
    """As ``steelsight inspect --store`` does it."""
    inspector = Inspector.load(engine="onnxruntime", threads=1, **options)
    identity = identity_of(inspector, inputs)
    with recording(store, inspector, identity, command="", source="") as record:
        for _ in inspect_sources(inspector, Sources(inputs), record):
            pass
        record.finish(complete=True)
    return store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay")
    frames = draw(folder)
    run(folder / "store.db", frames, folder / "frames.zip")
    return folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A store to alter."""
    return Path(shutil.copy2(made / "store.db", tmp_path / "store.db"))


def ids(store: Path) -> dict[str, int]:
    with Results(store) as results:
        return {row.name: row.id for row in results.inspections()}


def first(store: Path, verdict: Verdict) -> int:
    with Results(store) as results:
        return next(row.id for row in results.inspections() if row.verdict is verdict)


def alter(store: Path, sql: str, *values: object) -> None:
    connection = apsw.Connection(str(store))
    connection.execute(sql, values)
    assert connection.changes() == 1
    connection.close()


def test_every_verdict_is_the_same_bit_for_bit(made: Path) -> None:
    verdicts = set()
    for name, inspection_id in ids(made / "store.db").items():
        done = replay(made / "store.db", inspection_id)
        assert done.same, (name, done.differences)
        assert done.circumstances == ()
        # All but the times.
        assert replace(done.now, milliseconds=done.stored.milliseconds) == done.stored
        verdicts.add((done.stored.verdict, done.stored.reason))
    assert {verdict for verdict, _ in verdicts} == set(Verdict)
    assert {reason for _, reason in verdicts} >= {
        Reason.TRUNCATED,
        Reason.EMPTY,
        Reason.NOT_A_FILE,
    }


def test_a_member_of_an_archive(made: Path) -> None:
    done = replay(made / "store.db", ids(made / "store.db")["frames.zip/line1/1.jpg"])
    assert done.same
    assert done.frame.endswith("frames.zip::line1/1.jpg")
    told = json.loads(json.dumps(done.to_json()))
    assert told["same"] is True
    assert told["stored"]["image"] == "frames.zip/line1/1.jpg"


def test_full_frames_and_all_threads(shared_dir: Path, tmp_path: Path) -> None:
    images = sorted((shared_dir / "data" / "severstal" / "images").iterdir())[:3]
    store = run(tmp_path / "store.db", *images)
    for inspection_id in ids(store).values():
        assert replay(store, inspection_id, threads=2).same


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("faulty_probability", 0.75, "faulty_probability"),
        ("notes", '["another"]', "notes"),
        ("detail", "because", "detail"),
        ("width", 321, "size_wh"),
    ],
)
def test_an_altered_value_is_the_difference(
    own: Path, column: str, value: object, what: str
) -> None:
    inspection_id = first(own, Verdict.NG)
    alter(own, f"UPDATE inspections SET {column} = ? WHERE id = ?", value, inspection_id)
    (difference,) = replay(own, inspection_id).differences
    assert difference.what == what
    assert difference.now != difference.stored
    shown = {"size_wh": [321, 128], "notes": ["another"]}
    assert difference.stored == shown.get(what, value)


def test_the_last_bit_of_a_number_counts(own: Path) -> None:
    inspection_id = first(own, Verdict.NG)
    before = replay(own, inspection_id).stored.defects[0].probability
    alter(
        own,
        "UPDATE defects SET probability = ? WHERE inspection = ? AND ordinal = 0",
        float.fromhex(before.hex()) + 2**-53,
        inspection_id,
    )
    done = replay(own, inspection_id)
    assert not done.same
    (difference,) = done.differences
    assert difference.what == "defects[0].probability"
    assert difference.now == before
    assert done.to_json()["differences"][0]["stored"] != before


def test_a_defect_more_and_a_mask_that_is_another(own: Path) -> None:
    inspection_id = first(own, Verdict.NG)
    stored = replay(own, inspection_id).stored
    alter(
        own,
        "UPDATE defects SET rle = '1 5', x = 0 WHERE inspection = ? AND ordinal = 0",
        inspection_id,
    )
    found = {d.what: d for d in replay(own, inspection_id).differences}
    assert found["defects[0].rle"] == Difference("defects[0].rle", "1 5", stored.defects[0].rle)
    assert set(found) <= {"defects[0].rle", "defects[0].bbox_xywh"}
    count = len(stored.defects)
    alter(
        own,
        "INSERT INTO defects (inspection, ordinal, class_id, edge_px, area_px, x, y, w, h, "
        "length_px, width_px, orientation_deg, probability, rle) "
        "VALUES (?, ?, '1', 0, 1, 0, 0, 1, 1, 1.0, 1.0, 0.0, 0.5, '1 1')",
        inspection_id,
        count,
    )
    alter(own, "UPDATE inspections SET n_defects = n_defects + 1 WHERE id = ?", inspection_id)
    found = {d.what: d for d in replay(own, inspection_id).differences}
    assert found["number of defects"] == Difference("number of defects", count + 1, count)
    assert found[f"defects[{count}].class_id"] == Difference(
        f"defects[{count}].class_id", "1", None
    )


def test_a_verdict_that_was_altered(own: Path) -> None:
    """The one that matters: somebody made an OK of an UNKNOWN."""
    inspection_id = ids(own)["frames/cut.jpg"]
    alter(
        own,
        "UPDATE inspections SET verdict = 'OK', reason = NULL, detail = NULL, "
        "faulty_probability = 0.01 WHERE id = ?",
        inspection_id,
    )
    found = {d.what: (d.stored, d.now) for d in replay(own, inspection_id).differences}
    assert found["verdict"] == ("OK", "UNKNOWN")
    assert found["reason"] == (None, "truncated")
    assert found["faulty_probability"] == (0.01, None)


# The frame ---------------------------------------------------------------------------------------


@pytest.fixture
def moved(made: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run of one frame that may be changed."""
    frames = tmp_path / "frames"
    frames.mkdir()
    frame = Path(shutil.copy2(made / "frames" / "synthetic-000002.jpg", frames / "a.jpg"))
    return run(tmp_path / "store.db", frames), frame


def test_a_frame_that_was_changed_is_refused(moved: tuple[Path, Path], made: Path) -> None:
    store, frame = moved
    before = hashlib.sha256(frame.read_bytes()).hexdigest()
    frame.write_bytes(frame.read_bytes() + b"\0")
    after = hashlib.sha256(frame.read_bytes()).hexdigest()
    with pytest.raises(InputError) as refused:
        replay(store, 1)
    for told in (before, after, str(frame), "--frame FILE"):
        assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert replay(store, 1, frame=made / "frames" / "synthetic-000002.jpg").same
    with pytest.raises(InputError, match="expected its frame with sha256"):
        replay(store, 1, frame=made / "frames" / "synthetic-000003.jpg")


def test_a_frame_that_is_gone(moved: tuple[Path, Path], tmp_path: Path) -> None:
    store, frame = moved
    elsewhere = frame.rename(tmp_path / "kept.bin")
    with pytest.raises(InputError, match="No such file or directory; give --frame FILE"):
        replay(store, 1)
    # Its name is that of then: what it ends in decides, too.
    done = replay(store, 1, frame=elsewhere)
    assert done.same
    assert done.now.image == "a.jpg"
    with pytest.raises(InputError, match="No such file or directory"):
        replay(store, 1, frame=tmp_path / "none.jpg")


def test_a_frame_that_was_seen_twice_is_read_where_it_is_left(
    moved: tuple[Path, Path], tmp_path: Path
) -> None:
    store, frame = moved
    others = tmp_path / "others"
    others.mkdir()
    copy = Path(shutil.copy2(frame, others / "b.jpg"))
    run(store, others)
    with Results(store) as results:
        assert len(results.inspection(1).sightings) == 2
    copy.write_bytes(b"another")
    done = replay(store, 1)
    assert done.same
    assert done.frame == str(frame)


def test_a_file_that_could_not_be_read_then(tmp_path: Path, made: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "a.jpg").symlink_to(tmp_path / "none.jpg")
    store = run(tmp_path / "store.db", frames)
    done = replay(store, 1)
    assert (done.stored.reason, done.stored.sha256) == (Reason.UNREADABLE, None)
    assert done.same
    (frames / "a.jpg").unlink()
    shutil.copy2(made / "frames" / "synthetic-000002.jpg", frames / "a.jpg")
    now = replay(store, 1)
    assert now.differences[0].what == "verdict"
    assert now.now.verdict is not Verdict.UNKNOWN


# What inspects it --------------------------------------------------------------------------------


def test_the_decision_of_then(made: Path, tmp_path: Path) -> None:
    """Not the one that the bundle carries now."""
    text = (DEFAULT_BUNDLE / "decision.toml").read_text()
    strict = tmp_path / "strict.toml"
    strict.write_text(
        text.replace("ng_from = ", "ng_from = 0.9999 # ").replace(
            "clear_below = ", "clear_below = 0.9998 # "
        )
    )
    frame = made / "frames" / "synthetic-000002.jpg"
    store = run(tmp_path / "store.db", frame, decision=strict)
    strict.unlink()
    done = replay(store, 1)
    assert done.same
    assert done.now.decision == done.stored.decision != load_bundle().decision.id
    alter(store, "UPDATE decisions SET text = ?", text)
    with pytest.raises(InputError, match="it was altered"):
        replay(store, 1)


def test_the_policy_of_then(tmp_path: Path) -> None:
    import cv2
    import numpy as np

    random_of = np.random.default_rng(1)
    colour = random_of.integers(0, 255, (128, 320, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), colour)
    dark = random_of.integers(0, 4095, (128, 320), np.uint16)
    cv2.imwrite(str(tmp_path / "b.png"), dark)
    refused = run(tmp_path / "one.db", tmp_path / "a.png")
    taken = run(
        tmp_path / "two.db",
        tmp_path / "a.png",
        tmp_path / "b.png",
        allow_colour=True,
        policy=DecodePolicy(bit_depth=12),
    )
    done = replay(refused, 1)
    assert done.same
    assert done.now.reason is Reason.COLOURED
    for number in (1, 2):
        done = replay(taken, number)
        assert done.same
        assert done.now.faulty_probability is not None


def test_a_model_that_moved(made: Path, own: Path, tmp_path: Path) -> None:
    inspection_id = first(own, Verdict.NG)
    moved = tmp_path / "bundle"
    shutil.copytree(DEFAULT_BUNDLE, moved)
    alter(own, "UPDATE models SET folder = ?", str(tmp_path / "gone"))
    # The shipped one is the same.
    assert replay(own, inspection_id).bundle == str(DEFAULT_BUNDLE)
    assert replay(own, inspection_id, bundle=moved).bundle == str(moved)
    manifest = moved / "manifest.toml"
    manifest.write_text(manifest.read_text() + "# another\n")
    found = hashlib.sha256(manifest.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=found):
        replay(own, inspection_id, bundle=moved)
    with pytest.raises(InputError, match="holds none"):
        replay(own, inspection_id, bundle=tmp_path / "gone")
    alter(own, "UPDATE models SET sha256 = ?", "0" * 64)
    with pytest.raises(InputError, match="expected the model severstal-r50@") as refused:
        replay(own, inspection_id)
    assert str(tmp_path / "gone") in str(refused.value)
    assert "--bundle FOLDER" in str(refused.value)


def test_other_versions_are_told(own: Path) -> None:
    inspection_id = first(own, Verdict.NG)
    with Results(own) as results:
        settings = json.loads(results.inspection(inspection_id).settings)
    changed = settings | {"engine_version": "0.1", "steelsight": "0.0"}
    alter(own, "UPDATE setups SET settings = ?", json.dumps(changed))
    done = replay(own, inspection_id)
    assert done.same
    assert [(c.what, c.stored) for c in done.circumstances] == [
        ("engine version", "0.1"),
        ("steelsight", "0.0"),
    ]


@pytest.mark.skipif(util.find_spec("openvino") is None, reason="needs the extra openvino")
def test_another_engine_rounds_differently_and_says_so(own: Path) -> None:
    done = replay(own, first(own, Verdict.NG), engine="openvino")
    assert [(c.what, c.stored, c.now) for c in done.circumstances] == [
        ("engine", "onnxruntime-int8", "openvino-int8")
    ]
    assert not done.same
    assert "faulty_probability" in {d.what for d in done.differences}
    assert done.now.verdict == done.stored.verdict


def test_a_result_of_a_gpu(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for the GPU; the version is that of the GPU's package."""
    monkeypatch.setattr(Cuda, "_PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(Cuda, "_DEVICE", "cpu")
    monkeypatch.setattr("steelsight.engine.replay.engine_version", {"cuda": "1.31.1"}.get)
    inspection_id = first(own, Verdict.NG)
    done = replay(own, inspection_id, engine="cuda")
    assert [(c.what, c.now) for c in done.circumstances] == [("engine", "cuda-int8")]
    assert done.now.verdict == done.stored.verdict

    alter(own, "UPDATE setups SET engine = 'cuda-int8'")
    again = replay(own, inspection_id)
    (version,) = again.circumstances
    assert (version.what, version.now) == ("engine version", "1.31.1")

    # A GPU that computes wrongly is no difference of the result.
    monkeypatch.setattr("steelsight.engine.cascade.self_test", lambda _: (None, "other masks"))
    with pytest.raises(EngineError, match=r"expected of the GPU .* other masks"):
        replay(own, inspection_id, engine="cuda")


def test_an_engine_that_is_not_there(own: Path) -> None:
    alter(own, "UPDATE setups SET engine = 'tensorrt-int8'")
    with pytest.raises(InputError, match="got tensorrt") as refused:
        replay(own, first(own, Verdict.NG))
    assert "give --engine" in str(refused.value)
    assert "differ" not in str(refused.value)
    assert replay(own, first(own, Verdict.NG), engine="onnxruntime").same


def test_an_engine_that_is_not_installed(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise EngineError("expected openvino, it is not installed")

    monkeypatch.setattr("steelsight.engine.cascade.load_runtime", missing)
    with pytest.raises(EngineError, match=r"not installed \(give --engine"):
        replay(own, first(own, Verdict.NG))


@pytest.mark.parametrize("settings", ["{}", "[]", "no JSON", '{"policy": {"bits": 8}}'])
def test_settings_of_another_version(own: Path, settings: str) -> None:
    alter(own, "UPDATE setups SET settings = ?", settings)
    with pytest.raises(InputError, match="it was written by another version"):
        replay(own, 1)


def test_no_such_inspection_and_no_store(own: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no number 99"):
        replay(own, 99)
    with pytest.raises(StoreError, match="there is no such file"):
        replay(tmp_path / "none.db", 1)
