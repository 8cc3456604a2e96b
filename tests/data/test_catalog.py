import hashlib
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from steelsight.data.catalog import (
    THUMBNAIL_CELLS,
    Catalog,
    hash_pixels,
    normalise_locally,
    reduce_frame,
    scan,
    thumbnail,
    thumbnail_grid,
)
from steelsight.data.duplicates import Turn, turned
from steelsight.data.labels import FrameLabels, LabelSet, find_images
from steelsight.data.synthetic import CoilConfig, draw_frame, encode_jpeg
from steelsight.defects import Reason
from steelsight.errors import DecodeError
from steelsight.imaging import DecodePolicy, read_file

Grey = npt.NDArray[np.uint8]


def label_set(folder: Path, *labels: FrameLabels, refused: tuple[str, ...] = ()) -> LabelSet:
    return LabelSet(
        format="test",
        source=folder,
        classes=(),
        frames={frame.image: frame for frame in labels},
        image_paths=find_images(folder),
        refused=frozenset(refused),
    )


def noise(height: int, width: int, seed: int = 0) -> Grey:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good, coloured, damaged and empty images."""
    grey = draw_frame(CoilConfig(size_wh=(400, 128), seed=3), 0).grey_hw
    (tmp_path / "line1").mkdir()
    (tmp_path / "line1" / "a.jpg").write_bytes(encode_jpeg(grey))
    Image.fromarray(grey).save(tmp_path / "b.png")
    rgb = np.stack([grey, grey, 255 - grey], axis=2)
    Image.fromarray(rgb).save(tmp_path / "c-coloured.png")
    Image.fromarray(rgb).save(tmp_path / "d-coloured.jpg", quality=90)
    (tmp_path / "e-cut.jpg").write_bytes(encode_jpeg(grey)[:-700])
    (tmp_path / "f-empty.png").write_bytes(b"")
    (tmp_path / "g-text.png").write_text("no image")
    return tmp_path


def test_measures_are_those_that_pillow_and_numpy_give(folder: Path) -> None:
    records = {record.image: record for record in scan(label_set(folder)).records}
    for image in ("line1/a.jpg", "b.png"):
        record = records[image]
        grey = np.array(Image.open(folder / image).convert("L"))
        assert record.size_wh == (400, 128)
        assert record.brightness == pytest.approx(grey.mean(dtype=float), abs=1e-9)
        assert record.contrast == pytest.approx(grey.std(dtype=float), abs=1e-9)
        assert record.dark_share == pytest.approx((grey < 16).mean(), abs=1e-12)
        assert record.sha256 == hashlib.sha256((folder / image).read_bytes()).hexdigest()
        assert record.pixels_sha256 == hashlib.sha256(b"128 400\n" + grey.tobytes()).hexdigest()
        assert (record.coloured, record.reason, record.detail) == (False, None, None)


def test_colour_is_marked_and_judged_on_its_luma(folder: Path) -> None:
    records = {record.image: record for record in scan(label_set(folder)).records}
    for image in ("c-coloured.png", "d-coloured.jpg"):
        luma = read_file(folder / image).grey_hw
        assert records[image].coloured
        assert records[image].reason is None
        assert records[image].pixels_sha256 == hash_pixels(luma)
        assert records[image].brightness == pytest.approx(luma.mean(dtype=float))


def test_a_policy_that_wants_grey_refuses_colour(folder: Path) -> None:
    catalog = scan(label_set(folder), policy=DecodePolicy(grey_only=True))
    reasons = {r.image: r.reason for r in catalog.records}
    assert reasons["c-coloured.png"] == reasons["d-coloured.jpg"] == Reason.COLOURED
    assert reasons["b.png"] is None
    assert catalog.policy.grey_only


@pytest.mark.parametrize("image", ["e-cut.jpg", "f-empty.png", "g-text.png"])
def test_what_cannot_be_decoded_says_why_as_inspect_does(folder: Path, image: str) -> None:
    catalog = scan(label_set(folder))
    at = [r.image for r in catalog.records].index(image)
    record = catalog.records[at]
    with pytest.raises(DecodeError) as refused:
        read_file(folder / image)
    assert record.reason == refused.value.reason
    assert record.detail == str(refused.value)
    assert record.sha256 == hashlib.sha256((folder / image).read_bytes()).hexdigest()
    assert (record.pixels_sha256, record.size_wh, record.brightness) == (None, None, None)
    assert not catalog.thumbnails[at].any()


def test_missing_refused_and_unlabelled_frames(folder: Path) -> None:
    known = FrameLabels("b.png", {"1": "1 2"})
    gone = FrameLabels("a/gone.jpg", {})
    broken = FrameLabels("c-coloured.png", {})
    catalog = scan(label_set(folder, known, gone, broken, refused=("c-coloured.png", "z-gone.jpg")))
    names = [record.image for record in catalog.records]
    assert names == sorted(names)
    by_name = {record.image: record for record in catalog.records}
    assert by_name["b.png"].labels is known
    assert by_name["line1/a.jpg"].labels is None
    assert by_name["c-coloured.png"].labels is None
    assert by_name["a/gone.jpg"].labels is gone
    assert by_name["z-gone.jpg"].labels is None
    for image in ("a/gone.jpg", "z-gone.jpg"):
        record = by_name[image]
        assert (record.path, record.sha256, record.size_wh) == (None, None, None)
        assert record.reason is Reason.UNREADABLE
        assert record.detail == f"expected the image '{image}', it is not there"


def test_a_file_that_vanishes_is_unreadable(folder: Path) -> None:
    labels = label_set(folder)
    (folder / "b.png").unlink()
    record = {r.image: r for r in scan(labels).records}["b.png"]
    assert record.path == folder / "b.png"
    assert record.reason is Reason.UNREADABLE
    assert record.sha256 is None


def test_nothing_at_all(tmp_path: Path) -> None:
    catalog = scan(label_set(tmp_path))
    assert catalog.records == ()
    assert catalog.thumbnails.shape == (0, THUMBNAIL_CELLS)


def test_order_and_progress_do_not_depend_on_threads(folder: Path) -> None:
    def run(threads: int | None) -> tuple[Catalog, list[tuple[int, int]]]:
        steps: list[tuple[int, int]] = []
        labels = label_set(folder)
        before = cv2.getNumThreads()
        catalog = scan(labels, progress=lambda *step: steps.append(step), threads=threads)
        assert cv2.getNumThreads() == before
        return catalog, steps

    one, steps = run(1)
    many, many_steps = run(5)
    assert steps == many_steps == [(done, 7) for done in range(1, 8)]
    assert one.records == many.records
    np.testing.assert_array_equal(one.thumbnails, many.thumbnails)


def test_stopping_half_way_leaves_no_thread(folder: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    before = cv2.getNumThreads()
    with pytest.raises(KeyboardInterrupt):
        scan(label_set(folder), progress=stop)
    assert cv2.getNumThreads() == before
    assert not [t for t in threading.enumerate() if t.name.startswith("steelsight-scan")]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_size_is_that_of_the_upright_frame(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = BytesIO()
    Image.fromarray(noise(40, 90)).save(data, "PNG", exif=exif)
    (tmp_path / "a.png").write_bytes(data.getvalue())
    record = scan(label_set(tmp_path)).records[0]
    assert record.size_wh == ((40, 90) if orientation == 6 else (90, 40))
    assert bool(record.notes) == (orientation != 1)


SIDES = st.integers(1, 300)


@given(height=SIDES, width=SIDES, seed=st.integers(0, 99), turn=st.sampled_from(Turn))
@settings(max_examples=50, deadline=None)
def test_measures_of_turned_frames_are_equal_to_the_last_bit(
    height: int, width: int, seed: int, turn: Turn
) -> None:
    frame = noise(height, width, seed) // np.uint8(seed % 5 + 1)
    other = np.ascontiguousarray(turned(frame, turn))
    for one, two in zip(cv2.meanStdDev(frame), cv2.meanStdDev(other), strict=True):
        np.testing.assert_array_equal(one, two)


@given(width=st.integers(1, 20_000), height=st.integers(1, 20_000))
@settings(max_examples=200, deadline=None)
def test_thumbnail_grids_fit_and_turn_with_the_frame(width: int, height: int) -> None:
    rows, columns = thumbnail_grid((width, height))
    assert rows >= 1
    assert columns >= 1
    assert rows * columns <= THUMBNAIL_CELLS
    assert thumbnail_grid((height, width)) == (columns, rows)


@pytest.mark.parametrize("turn", Turn)
@pytest.mark.parametrize("size_wh", [(1600, 256), (200, 200), (333, 218), (64, 64), (7, 3), (1, 1)])
def test_a_turned_frame_has_the_turned_thumbnail(size_wh: tuple[int, int], turn: Turn) -> None:
    width, height = size_wh
    frame = cv2.GaussianBlur(noise(height, width), (5, 5), 0).astype(np.uint8)
    rows, columns = thumbnail_grid(size_wh)
    cells = thumbnail(frame)[: rows * columns].reshape(rows, columns)
    other = thumbnail(np.ascontiguousarray(turned(frame, turn)))[: rows * columns]
    # Halves of an odd number of pixels round differently from the other side.
    np.testing.assert_allclose(turned(cells, turn).ravel(), other, atol=0.02)


def test_a_thumbnail_has_length_one_and_ignores_light() -> None:
    frame = draw_frame(CoilConfig(size_wh=(800, 128), seed=1, faulty_share=1), 2).grey_hw
    light = np.linspace(-20, 20, frame.shape[1])
    lit = np.clip(np.clip(frame, 30, 200) + light, 0, 255).astype(np.uint8)
    one, two = thumbnail(np.clip(frame, 30, 200)), thumbnail(lit)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    assert one @ two > 0.95


def test_frames_that_share_only_light_or_a_straight_edge_have_no_thumbnail() -> None:
    blank = np.full((256, 1600), 90, np.uint8)
    shaded = np.broadcast_to(np.linspace(60, 120, 1600).astype(np.uint8), (256, 1600))
    edge = blank.copy()
    edge[:, 1300:] = 3
    for frame in (blank, np.ascontiguousarray(shaded), edge):
        assert not thumbnail(frame).any()


def naive_normalised(
    grey: npt.NDArray[np.float32], window: int, floor: float
) -> npt.NDArray[np.float64]:
    half = window // 2

    def mean(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        padded = np.pad(image, half, mode="symmetric")
        views = np.lib.stride_tricks.sliding_window_view(padded, (window, window))
        return np.asarray(views.mean((2, 3)), np.float64)

    detail = grey - mean(grey.astype(float))
    return np.asarray(detail / (np.sqrt(mean(detail**2)) + floor), np.float64)


def test_local_normalisation_is_what_its_formula_says() -> None:
    grey = noise(30, 41).astype(np.float32)
    found = normalise_locally(grey, window=7, floor=4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, naive_normalised(grey, 7, 4), atol=1e-4)


@pytest.mark.parametrize(
    ("size_wh", "reduced_wh"),
    [
        ((1600, 256), (800, 128)),
        ((200, 200), (100, 100)),
        ((400, 100), (400, 100)),
        ((4096, 3000), (585, 428)),
        ((100_000, 1), (100_000, 1)),
    ],
)
def test_confirmation_sizes(size_wh: tuple[int, int], reduced_wh: tuple[int, int]) -> None:
    width, height = size_wh
    assert reduce_frame(np.zeros((height, width), np.uint8)).shape == reduced_wh[::-1]


def test_many_frames_stay_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the caller is, only a few frames are decoded ahead."""
    for number in range(40):
        Image.fromarray(noise(16, 16, number)).save(tmp_path / f"{number:02}.png")
    lock, decoded = threading.Lock(), 0
    ahead: list[int] = []
    read: Callable[..., object] = thumbnail

    def counting(grey_hw: Grey) -> object:
        nonlocal decoded
        with lock:
            decoded += 1
        return read(grey_hw)

    monkeypatch.setattr("steelsight.data.catalog.thumbnail", counting)
    scan(label_set(tmp_path), progress=lambda done, _: ahead.append(decoded - done), threads=2)
    assert max(ahead) <= 5


def test_real_frames(shared_dir: Path) -> None:
    catalog = scan(label_set(shared_dir / "data" / "severstal" / "test_images"))
    assert len(catalog.records) == 46
    assert all(r.reason is None and not r.coloured for r in catalog.records)
    assert {r.size_wh for r in catalog.records} == {(1600, 256)}
    np.testing.assert_allclose(np.linalg.norm(catalog.thumbnails, axis=1), 1, atol=1e-5)
