import json
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from PIL import Image

from steelsight.data import duplicates as module
from steelsight.data.catalog import Catalog, reduce_frame, scan
from steelsight.data.duplicates import (
    DuplicatePair,
    Duplicates,
    Likeness,
    Turn,
    find_duplicates,
    turned,
)
from steelsight.data.labels import LabelSet, find_images
from steelsight.data.synthetic import CoilConfig, draw_coil, draw_frame
from steelsight.errors import InputError
from steelsight.imaging import read_file

Grey = npt.NDArray[np.uint8]
UPRIGHT = (Turn.NONE, Turn.FLIP_LEFT_RIGHT, Turn.FLIP_UP_DOWN, Turn.ROTATE_180)

REFERENCE: dict[Turn, Callable[[Grey], Grey]] = {
    Turn.NONE: lambda a: a,
    Turn.FLIP_LEFT_RIGHT: np.fliplr,
    Turn.FLIP_UP_DOWN: np.flipud,
    Turn.ROTATE_180: lambda a: np.rot90(a, 2),
    Turn.ROTATE_90: np.rot90,
    Turn.ROTATE_270: lambda a: np.rot90(a, 3),
    Turn.TRANSPOSE: np.transpose,
    Turn.ANTI_TRANSPOSE: lambda a: np.rot90(np.transpose(a), 2),
}


def catalog_of(folder: Path) -> Catalog:
    paths = find_images(folder)
    return scan(LabelSet("test", folder, (), frames={}, image_paths=paths))


def strip(seed: int = 0, index: int = 0, size_wh: tuple[int, int] = (800, 128)) -> Grey:
    return draw_frame(CoilConfig(seed=seed, size_wh=size_wh), index).grey_hw


def save_png(path: Path, grey: Grey) -> None:
    Image.fromarray(np.ascontiguousarray(grey)).save(path)


def save_jpeg(path: Path, grey: Grey, quality: int) -> None:
    pixels = np.ascontiguousarray(grey)[:, :, None]
    path.write_bytes(simplejpeg.encode_jpeg(pixels, quality, "GRAY"))


def copied(grey: Grey, quality: int, levels: int) -> Grey:
    """As another JPEG, brighter or darker."""
    lit = np.clip(grey.astype(int) + levels, 0, 255).astype(np.uint8)
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(lit)[:, :, None], quality, "GRAY")
    return np.asarray(simplejpeg.decode_jpeg(data, colorspace="GRAY")[:, :, 0])


def by_names(found: Duplicates) -> dict[tuple[str, str], DuplicatePair]:
    return {(pair.a, pair.b): pair for pair in found.pairs}


# turned ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", Turn)
def test_turns_are_those_of_numpy_and_views(turn: Turn) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(turned(grey, turn), REFERENCE[turn](grey))
    assert np.shares_memory(turned(grey, turn), grey)
    masks = np.stack([grey, grey + 1])
    np.testing.assert_array_equal(turned(masks, turn)[1], REFERENCE[turn](grey + 1))


# Equal frames ------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", Turn)
@pytest.mark.parametrize("size_wh", [(800, 128), (128, 128)])
def test_equal_pixels_under_every_turn(
    tmp_path: Path, size_wh: tuple[int, int], turn: Turn
) -> None:
    a, other = strip(0, 1, size_wh), strip(0, 2, size_wh)
    save_png(tmp_path / "a.png", a)
    save_png(tmp_path / "b.png", REFERENCE[turn](a))
    save_png(tmp_path / "c.png", other)
    if turn is Turn.NONE:
        Image.fromarray(a).save(tmp_path / "b.png", compress_level=1)
    found = find_duplicates(catalog_of(tmp_path))
    assert found.groups == (("a.png", "b.png"),)
    assert found.pairs == (DuplicatePair("a.png", "b.png", Likeness.SAME_PIXELS, turn, 1.0),)


def test_frames_without_texture_are_the_same_only_when_equal(tmp_path: Path) -> None:
    blank = np.full((128, 800), 80, np.uint8)
    dust = blank.copy()
    dust[60:64, 300:304] = 40
    for number in range(4):
        save_png(tmp_path / f"blank-{number}.png", blank + np.uint8(number))
        moved = dust.copy()
        moved[number, 0] += 1
        save_png(tmp_path / f"dust-{number}.png", moved)
    save_png(tmp_path / "equal.png", blank)
    save_png(tmp_path / "small.png", blank[:100])
    found = find_duplicates(catalog_of(tmp_path))
    assert found.groups == (("blank-0.png", "equal.png"),)


def test_smooth_steel_with_the_strip_edge_at_the_same_place_is_not_the_same(
    tmp_path: Path,
) -> None:
    for number in range(6):
        rng = np.random.default_rng(number)
        frame = np.full((256, 1600), 90.0)
        frame[:, 1200:] = 5
        frame[200:] = 3
        save_jpeg(
            tmp_path / f"{number}.jpg", (frame + rng.normal(0, 1.5, frame.shape)).astype("u1"), 85
        )
    assert find_duplicates(catalog_of(tmp_path)).groups == ()


def test_equal_files_come_first_and_connect_families(tmp_path: Path) -> None:
    grey = strip()
    save_png(tmp_path / "a.png", grey)
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "c.png")
    save_png(tmp_path / "d.png", np.fliplr(grey))
    shutil.copy(tmp_path / "d.png", tmp_path / "e.png")
    save_jpeg(tmp_path / "f.jpg", np.flipud(grey), 80)
    found = find_duplicates(catalog_of(tmp_path))
    assert found.groups == (("a.png", "b.png", "c.png", "d.png", "e.png", "f.jpg"),)
    assert {names: (p.likeness, p.turn) for names, p in by_names(found).items()} == {
        ("a.png", "b.png"): (Likeness.SAME_FILE, Turn.NONE),
        ("a.png", "c.png"): (Likeness.SAME_FILE, Turn.NONE),
        ("a.png", "d.png"): (Likeness.SAME_PIXELS, Turn.FLIP_LEFT_RIGHT),
        ("a.png", "f.jpg"): (Likeness.NEAR, Turn.FLIP_UP_DOWN),
        ("d.png", "e.png"): (Likeness.SAME_FILE, Turn.NONE),
    }


def test_frames_that_cannot_be_decoded_are_left_out(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    for name in ("c.jpg", "d.jpg"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff nothing")
    steps: list[tuple[int, int]] = []
    found = find_duplicates(catalog_of(tmp_path), progress=lambda *step: steps.append(step))
    assert found == Duplicates((), ())
    assert steps[-1] == (0, 0)


# Nearly equal frames -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quality", "levels"), [(50, 0), (50, 10), (75, -10), (95, 10), (95, 0), (60, -10)]
)
def test_recompressed_copies_are_found_under_every_turn(
    tmp_path: Path, quality: int, levels: int
) -> None:
    expected = {}
    for size_wh in ((800, 128), (200, 200)):
        for number, turn in enumerate(Turn):
            name = f"{size_wh[0]}-{number}"
            grey = strip(7, number, size_wh)
            save_jpeg(tmp_path / f"{name}-a.jpg", grey, 90)
            save_jpeg(
                tmp_path / f"{name}-b.jpg", copied(REFERENCE[turn](grey), quality, levels), 90
            )
            expected[f"{name}-a.jpg", f"{name}-b.jpg"] = turn
    found = find_duplicates(catalog_of(tmp_path))
    assert {names: p.turn for names, p in by_names(found).items()} == expected
    assert found.groups == tuple(sorted(expected))
    assert all(p.likeness is Likeness.NEAR and p.shift_xy == (0, 0) for p in found.pairs)
    assert min(p.similarity for p in found.pairs) > 0.4


def test_frames_of_one_coil_are_different_steel(tmp_path: Path) -> None:
    for frame in draw_coil(CoilConfig(frames=60, size_wh=(800, 128), seed=11)):
        save_jpeg(tmp_path / frame.name, frame.grey_hw, 90)
    assert find_duplicates(catalog_of(tmp_path)) == Duplicates((), ())


def test_chequered_plate_is_not_told_by_its_pattern(tmp_path: Path) -> None:
    """The same embossed pattern at the same place on steel with another surface."""
    y, x = np.mgrid[:256, :1600]
    embossed = 60 * ((np.abs((x + y) % 120 - 60) < 4) | (np.abs((x - y) % 120 - 60) < 4))
    for number in range(8):
        rng = np.random.default_rng(number)
        surface = rng.normal(0, 6, (64, 400)).repeat(4, 0).repeat(4, 1)
        frame = np.clip(80 + embossed + surface, 0, 255).astype(np.uint8)
        save_jpeg(tmp_path / f"{number}.jpg", frame, 90)
    save_jpeg(tmp_path / "copy.jpg", np.flipud(frame), 60)
    catalog = catalog_of(tmp_path)
    plates = catalog.thumbnails[:8]
    assert (plates @ plates.T).min() > 0.4, "they are no candidates"
    assert find_duplicates(catalog).groups == (("7.jpg", "copy.jpg"),)


@pytest.mark.parametrize("turn", [Turn.NONE, Turn.ROTATE_90])
def test_the_second_photograph_is_found_with_its_shift(tmp_path: Path, turn: Turn) -> None:
    rng = np.random.default_rng(0)
    coarse = cv2.GaussianBlur(rng.normal(0, 300, (240, 240)), (0, 0), sigmaX=8)
    steel = np.clip(100 + coarse + rng.normal(0, 3, coarse.shape), 0, 255).astype(np.uint8)
    a, b = steel[20:220, 20:220], REFERENCE[turn](steel)[14:214, 24:224]
    save_png(tmp_path / "a.png", a)
    save_jpeg(tmp_path / "b.jpg", copied(b, 90, 8), 90)
    (pair,) = find_duplicates(catalog_of(tmp_path)).pairs
    assert (pair.likeness, pair.turn) == (Likeness.NEAR, turn)
    assert pair.shift_xy == (-4, 6)


def test_a_large_family_takes_few_comparisons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = strip(4, 0, (256, 64))
    for number in range(150):
        other = grey.copy()
        other[number % 64, number] ^= 1
        save_png(tmp_path / f"{number:03}.png", turned(other, UPRIGHT[number % 4]))
    compared = 0
    compare = module._compare

    def counting(*given: object) -> tuple[float, tuple[int, int]]:
        nonlocal compared
        compared += 1
        return compare(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_compare", counting)
    monkeypatch.setattr(module._ThumbnailSearch, "_BLOCK", 32)
    found = find_duplicates(catalog_of(tmp_path))
    assert [len(group) for group in found.groups] == [150]
    assert len(found.pairs) == compared == 149


def test_only_the_best_doubtful_candidates_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        save_png(tmp_path / f"{number}.png", strip(number, 0))
    for name, value in {"_LEAST_CANDIDATE": -1, "_MORE_CANDIDATES": 5, "_BATCH": 2}.items():
        monkeypatch.setattr(module, name, value)
    seen: list[float] = []

    def never(_: object, candidate: module._Candidate) -> tuple[float, tuple[int, int]]:
        seen.append(candidate.similarity)
        return 0.0, (0, 0)

    monkeypatch.setattr(module, "_compare", never)
    steps: list[tuple[int, int]] = []
    catalog = catalog_of(tmp_path)
    assert find_duplicates(catalog, progress=lambda *s: steps.append(s)) == Duplicates((), ())
    assert len(seen) == 5
    assert steps == sorted(steps)
    assert steps[-1] == (24, 24)


def test_the_search_agrees_with_all_pairs_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._ThumbnailSearch, "_BLOCK", 4)
    monkeypatch.setattr(module, "_LEAST_CANDIDATE", -1)
    sizes = [(300, 100), (100, 300), (128, 128), (300, 101)]
    for number in range(20):
        w, h = sizes[number % 4]
        save_png(tmp_path / f"{number:02}.png", strip(number // 4, number, (300, 300))[:h, :w])
    catalog = catalog_of(tmp_path)
    records = catalog.records
    reduced = [read_file(r.path or "").grey_hw for r in records]
    best: dict[int, list[tuple[int, float]]] = {}
    for j in range(20):
        for i in range(j):
            values = [
                float(module_thumbnail(REFERENCE[turn](reduced[i])) @ catalog.thumbnails[j])
                for turn in Turn
                if REFERENCE[turn](reduced[i]).shape == reduced[j].shape
            ]
            if values:
                best.setdefault(j, []).append((i, max(values)))
    found: dict[int, list[tuple[int, float]]] = {}
    for _, candidates in module._ThumbnailSearch(catalog, range(20)):
        for c in candidates:
            found.setdefault(c.j, []).append((c.i, c.similarity))
    assert found.keys() == best.keys()
    for j, expected in best.items():
        # All of them: none has more than eight earlier frames per shape.
        assert [i for i, _ in sorted(found[j])] == [i for i, _ in expected]
        np.testing.assert_allclose(
            [s for _, s in sorted(found[j])], [s for _, s in expected], atol=0.03
        )


def module_thumbnail(grey: Grey) -> npt.NDArray[np.float32]:
    from steelsight.data.catalog import thumbnail

    return thumbnail(np.ascontiguousarray(grey))


@pytest.mark.parametrize(
    "spoil",
    [Path.unlink, lambda p: p.write_bytes(b"no"), lambda p: save_png(p, strip(1))],
    ids=["gone", "damaged", "other image"],
)
def test_a_file_that_changed_since_the_scan(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    save_png(tmp_path / "a.png", strip())
    save_png(tmp_path / "b.png", np.fliplr(strip()))
    catalog = catalog_of(tmp_path)
    spoil(tmp_path / "a.png")
    with pytest.raises(InputError, match="changed since it was scanned") as told:
        find_duplicates(catalog)
    assert str(tmp_path / "a.png") in str(told.value)
    assert "\n" not in str(told.value)


# Real frames -------------------------------------------------------------------------------------


def test_published_split_of_neu_seg(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "neu_seg_leak"
    families = json.loads((folder / "duplicate_groups.json").read_text())
    expected = {tuple(sorted(n.removeprefix("images/") for n in family)) for family in families}
    assert set(find_duplicates(catalog_of(folder / "images")).groups) == expected


def test_neu_frames_that_show_the_same_steel(shared_dir: Path) -> None:
    """Looked at: one equal file, one turned copy, four second photographs with other light."""
    found = find_duplicates(catalog_of(shared_dir / "data" / "neu900" / "images"))
    assert {(p.a, p.b): p.turn for p in found.pairs} == {
        ("In_125.png", "In_88.png"): Turn.NONE,
        ("In_186.png", "In_211.png"): Turn.NONE,
        ("In_188.png", "In_210.png"): Turn.NONE,
        ("In_235.png", "In_245.png"): Turn.NONE,
        ("Pa_101.png", "Pa_105.png"): Turn.NONE,
        ("Sc_232.png", "Sc_247.png"): Turn.ROTATE_270,
    }


@pytest.mark.soak
def test_severstal_and_the_figures_behind_the_thresholds(shared_dir: Path) -> None:
    figures: list[str] = []
    same = {
        "severstal": {("0bfe252d0.jpg", "b4d0843ed.jpg"), ("49e374bd3.jpg", "6099f39dc.jpg")},
        "neu900": None,
    }
    for name, expected in same.items():
        catalog = catalog_of(shared_dir / "data" / name / "images")
        found = find_duplicates(catalog)
        assert expected is None or set(found.groups) == expected
        for quality, levels in ((50, 0), (75, -10)):
            likeness = list(_copies(catalog, quality, levels))
            thumbnails, agreements = zip(*likeness, strict=True)
            figures.append(
                f"{name}, {len(likeness)} copies of quality {quality}, {levels} levels:"
                f" thumbnails from {min(thumbnails):.3f}, agreement from {min(agreements):.3f}"
            )
            assert min(thumbnails) > module._SURE_CANDIDATE
            assert min(agreements) > module._LEAST_AGREEMENT
        others = sorted(_non_pairs(catalog, found), reverse=True)
        sure = sum(similarity > module._SURE_CANDIDATE for _, similarity in others)
        figures.append(
            f"{name}, {len(others)} non-pairs with thumbnails above {module._LEAST_CANDIDATE},"
            f" {sure} above {module._SURE_CANDIDATE}, up to {max(s for _, s in others):.3f}:"
            f" agreement up to {others[0][0]:.3f}; pairs from"
            f" {min(p.similarity for p in found.pairs):.3f}"
        )
        assert others[0][0] < module._LEAST_AGREEMENT
    sys.stdout.write("\n" + "\n".join(figures) + "\n")


def _copies(catalog: Catalog, quality: int, levels: int) -> Iterable[tuple[float, float]]:
    """Correlation of thumbnails and similarity for every fourth frame and its copy."""
    for i in range(0, len(catalog.records), 4):
        grey = read_file(catalog.records[i].path or "").grey_hw
        copy = copied(grey, quality, levels)
        pair = {0: reduce_frame(grey), 1: reduce_frame(copy)}
        thumbnails = float(module_thumbnail(copy) @ catalog.thumbnails[i])
        yield thumbnails, module._agreement_of(pair[0], pair[1])[0]


def _non_pairs(catalog: Catalog, found: Duplicates) -> Iterable[tuple[float, float]]:
    """Similarity and correlation of thumbnails of all candidates that are no duplicates."""
    family = {name: group for group in found.groups for name in group}
    reduced = module._Reduced(catalog)
    for _, candidates in module._ThumbnailSearch(catalog, range(len(catalog.records))):
        for c in candidates:
            a, b = (catalog.records[k].image for k in (c.i, c.j))
            if family.get(a, a) != family.get(b, b):
                yield module._compare(reduced, c)[0], c.similarity
