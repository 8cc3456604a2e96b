import csv
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from steelsight.data import synthetic
from steelsight.data.formats.severstal import read_csv
from steelsight.data.synthetic import (
    CLASS_IDS,
    CoilConfig,
    SyntheticFrame,
    draw_coil,
    draw_frame,
    write_severstal,
)
from steelsight.errors import InputError
from steelsight.masks import decode_rle

STATISTICS = json.loads(
    (Path(synthetic.__file__).parent / "synthetic_statistics.json").read_text(encoding="utf-8")
)
LEARN = Path(__file__).parents[2] / "benchmarks" / "learn_synthetic_statistics.py"
SMALL = (400, 128)


def only(class_id: str) -> tuple[float, float, float, float]:
    a, b, c, d = (float(k == class_id) for k in CLASS_IDS)
    return a, b, c, d


@pytest.fixture(scope="module")
def learn() -> ModuleType:
    spec = importlib.util.spec_from_file_location("learn_synthetic_statistics", LEARN)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def faulty() -> dict[str, list[SyntheticFrame]]:
    """Per type, frames of full size that hold it; each from its own coil."""
    return {
        k: [
            draw_frame(CoilConfig(seed=seed, faulty_share=1, class_weights=only(k)), seed % 60)
            for seed in range(24)
        ]
        for k in CLASS_IDS
    }


def same(a: SyntheticFrame, b: SyntheticFrame) -> bool:
    return (
        a.name == b.name
        and np.array_equal(a.grey_hw, b.grey_hw)
        and np.array_equal(a.masks_chw, b.masks_chw)
    )


# --- determinism -----------------------------------------------------------------------------


def test_a_frame_does_not_depend_on_what_was_drawn_before() -> None:
    config = CoilConfig(frames=6, seed=5, faulty_share=0.5, size_wh=SMALL)
    in_order = list(draw_coil(config))
    assert [f.name for f in in_order] == [f"synthetic-{i:06d}.jpg" for i in range(6)]
    for index in (5, 0, 3):
        assert same(draw_frame(config, index), in_order[index])
    longer = replace(config, frames=50)
    assert same(draw_frame(longer, 3), in_order[3])


def test_seeds_and_indices_differ() -> None:
    config = CoilConfig(frames=3, seed=1, size_wh=SMALL)
    first, second, _ = draw_coil(config)
    other = draw_frame(replace(config, seed=2), 0)
    assert not np.array_equal(first.grey_hw, second.grey_hw)
    assert not np.array_equal(first.grey_hw, other.grey_hw)


def test_frames_of_a_coil_resemble_each_other() -> None:
    """The spread of brightness within a coil is well below that between coils."""
    config = CoilConfig(frames=8, faulty_share=0, edge_share=0)
    grey = np.array(
        [[f.grey_hw.mean() for f in draw_coil(replace(config, seed=s))] for s in range(6)]
    )
    assert grey.std(axis=1).mean() < 0.5 * grey.mean(axis=1).std()


# --- exact truth -----------------------------------------------------------------------------


@pytest.mark.parametrize("class_id", CLASS_IDS)
def test_outside_the_masks_a_frame_equals_its_clean_twin(class_id: str) -> None:
    for seed in range(6):
        config = CoilConfig(seed=seed, faulty_share=1, class_weights=only(class_id))
        frame, twin = draw_frame(config, seed), draw_frame(config, seed, with_defects=False)
        mask = frame.masks_chw.any(axis=0)
        assert frame.class_ids == (class_id,)
        assert twin.class_ids == ()
        assert frame.name == twin.name
        assert np.array_equal(frame.grey_hw[~mask], twin.grey_hw[~mask])
        count, labels = cv2.connectedComponents(mask.astype(np.uint8))
        changed = frame.grey_hw != twin.grey_hw
        for part in range(1, count):  # and every outline holds something
            assert changed[labels == part].mean() > 0.05


def test_clean_frames_have_no_mask_and_faulty_ones_do() -> None:
    for frame in draw_coil(CoilConfig(frames=4, faulty_share=0, size_wh=SMALL)):
        assert frame.class_ids == ()
        assert not frame.masks_chw.any()
    for frame in draw_coil(CoilConfig(frames=12, faulty_share=1, size_wh=SMALL)):
        assert frame.class_ids
        for k, mask_hw in zip(CLASS_IDS, frame.masks_chw, strict=True):
            assert mask_hw.any() == (k in frame.class_ids)


# --- like the real labels --------------------------------------------------------------------


def ks_distance(values: list[float], quantiles: list[float]) -> float:
    """Largest distance between the values' distribution and one stored as quantiles."""
    ordered = np.sort(values)
    wanted = np.interp(ordered, quantiles, np.linspace(0, 1, len(quantiles)))
    return float(np.abs(np.arange(1, len(ordered) + 1) / len(ordered) - wanted).max())


def drawn_masks(class_id: str, count: int) -> list[np.ndarray]:
    """Masks of one type from many frames, without painting them (which takes most of the time)."""
    masks = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        mask = np.zeros((4, 256, 1600), bool)
        drawn = synthetic._outlines(rng, int(class_id), (256, 1600))
        places = synthetic._places(rng, int(class_id), drawn, "none", (0, 1600), mask)
        for x, y, outline in places:
            h, w = outline.shape
            mask[int(class_id) - 1, y : y + h, x : x + w] |= outline
        masks.append(mask[int(class_id) - 1])
    return masks


@pytest.mark.parametrize("class_id", CLASS_IDS)
def test_areas_counts_and_shapes_follow_the_statistics(class_id: str) -> None:
    known = STATISTICS["types"][class_id]
    masks = drawn_masks(class_id, 300)
    parts = [
        cv2.connectedComponentsWithStats(m.astype(np.uint8), connectivity=8)[2][1:] for m in masks
    ]
    # 0.094 is the 1 % bound of Kolmogorov and Smirnov for 300 values; rounding and overlaps add
    assert ks_distance([float(m.sum()) for m in masks], known["area_px"]) < 0.15
    single = sum(len(p) == 1 for p in parts) / len(parts)
    assert single == pytest.approx(known["components"][0], abs=0.15)
    height, width = np.concatenate(parts)[:, [3, 2]].T.astype(float)
    wanted = [s["aspect"][len(s["aspect"]) // 2] for s in known["shape_by_area"]]
    median = float(np.median(height / width))
    assert min(wanted) * 0.8 <= median <= max(wanted) * 1.6
    full = np.mean(height >= 250)
    assert full == pytest.approx(
        np.mean([s["full_height"] for s in known["shape_by_area"]]), abs=0.1
    )


def test_type_frequencies_follow_the_real_ones() -> None:
    config = CoilConfig(frames=3000, faulty_share=0.5)
    plans = [synthetic._plan(config, i)[0] for i in range(config.frames)]
    faulty = [p for p in plans if p]
    assert len(faulty) / len(plans) == pytest.approx(0.5, abs=0.04)
    first = np.bincount([p[0] for p in faulty], minlength=5)[1:] / len(faulty)
    assert first == pytest.approx(config.class_weights, abs=0.03)
    real = STATISTICS["type_sets"]
    several = sum(n for names, n in real.items() if " " in names) / sum(real.values())
    assert np.mean([len(p) > 1 for p in faulty]) == pytest.approx(several, abs=0.02)


def test_hairlines_lie_along_a_strip_edge(faulty: dict[str, list[SyntheticFrame]]) -> None:
    for frame in faulty["2"]:
        steel = np.flatnonzero(np.median(frame.grey_hw, axis=0) > 12)
        columns = np.flatnonzero(frame.masks_chw[1].any(axis=0))
        assert len(steel) < 1600
        away = columns - steel[0] if steel[0] > 0 else steel[-1] - columns
        assert np.median(away) < 200


@pytest.mark.parametrize("lane", ["left", "right"])
def test_the_dark_edge_is_dark_and_the_steel_is_not(lane: str) -> None:
    found = 0
    for seed in range(12):
        config = CoilConfig(seed=seed, faulty_share=0, edge_share=1)
        if synthetic._plan(config, 0)[1] != lane:
            continue
        found += 1
        column = np.median(draw_frame(config, 0).grey_hw, axis=0)
        if lane == "right":
            column = column[::-1]
        assert column[:2].max() < 8
        assert column[1100:].mean() > 25
    assert found


def test_clean_frames_look_like_real_clean_frames(learn: ModuleType) -> None:
    """Most frames lie between the 2.5 and 97.5 % quantiles of the real ones in every measure."""
    measures = [
        m
        for seed in range(30)
        if (
            m := learn.surface_measures(
                draw_frame(CoilConfig(seed=seed, faulty_share=0), 7).grey_hw
            )
        )
    ]
    for name, real in STATISTICS["clean_surface"].items():
        low, high = np.interp([0.025, 0.975], np.linspace(0, 1, len(real)), real)
        inside = np.mean([low <= m[name] <= high for m in measures])
        assert inside >= 0.75, name
        median = np.median([m[name] for m in measures])
        assert real[2] <= median <= real[18], name


def test_shipped_statistics_come_from_the_real_labels(learn: ModuleType, shared_dir: Path) -> None:
    folder = shared_dir / "data" / "severstal"
    masks: dict[str, list[np.ndarray]] = {"1": [], "4": []}
    for row in learn.rows(folder / "train_partial.csv"):
        if row["ClassId"] in masks:
            found = learn.components(learn.decode_rle(row["EncodedPixels"]))
            if len(found):
                masks[row["ClassId"]].append(found)
    for k, of_type in masks.items():
        assert learn.type_geometry(of_type) == STATISTICS["types"][k]


# --- sizes and refusals ----------------------------------------------------------------------


@pytest.mark.parametrize("size_wh", [(1600, 256), (128, 64), (401, 255), (257, 1031)])
def test_any_size_works(size_wh: tuple[int, int]) -> None:
    config = CoilConfig(frames=8, seed=3, faulty_share=1, size_wh=size_wh, edge_share=0.6)
    for frame in draw_coil(config):
        assert frame.grey_hw.shape == size_wh[::-1]
        assert frame.grey_hw.dtype == np.uint8
        assert frame.masks_chw.shape == (4, *size_wh[::-1])
        assert frame.class_ids
        assert frame.masks_chw.any(axis=0).mean() < 0.95


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 0}, "frames between 1"),
        ({"seed": -1}, "seed of 0 or more"),
        ({"faulty_share": 25}, "faulty_share between 0 and 1"),
        ({"faulty_share": math.nan}, "faulty_share between 0 and 1"),
        ({"edge_share": -0.1}, "edge_share between 0 and 1"),
        ({"size_wh": (256, 32)}, "from 128x64 to"),
        ({"size_wh": (100_000, 256)}, "from 128x64 to"),
        ({"size_wh": (1600, 256, 3)}, "from 128x64 to"),
        ({"class_weights": (1, 0, 0)}, "four class_weights"),
        ({"class_weights": (1, 0, 0, -1)}, "four class_weights"),
        ({"class_weights": (1, 0, 0, math.inf)}, "four class_weights"),
        ({"class_weights": (0, 0, 0, 0)}, "class weight above 0"),
    ],
)
def test_impossible_configurations_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        CoilConfig(**options)  # type: ignore[arg-type]
    assert "expected" in str(error.value)
    assert "received" in str(error.value)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_frame_outside_the_coil_is_refused(index: int) -> None:
    with pytest.raises(InputError, match="index from 0 to 2"):
        draw_frame(CoilConfig(frames=3), index)


# --- on disk ---------------------------------------------------------------------------------


def test_written_labels_read_back(tmp_path: Path) -> None:
    config = CoilConfig(frames=6, seed=8, faulty_share=0.6, size_wh=SMALL)
    seen: list[int] = []
    folder = write_severstal(config, tmp_path / "new" / "coil", progress=seen.append)
    frames = list(draw_coil(config))
    faulty = [f for f in frames if f.class_ids]
    assert 0 < len(faulty) < 6  # both kinds are there
    assert seen == [1, 2, 3, 4, 5, 6]
    labels = read_csv(folder / "train.csv", size_wh=SMALL)
    assert list(labels) == [f.name for f in faulty]
    for row, frame in zip(labels.values(), faulty, strict=True):
        assert tuple(row.rle_by_class) == frame.class_ids
        for k, rle in row.rle_by_class.items():
            mask = decode_rle(rle, SMALL)
            assert np.array_equal(mask, frame.masks_chw[CLASS_IDS.index(k)])
    with (folder / "images.csv").open(encoding="utf-8", newline="") as file:
        stated = list(csv.DictReader(file))
    assert [(r["ImageId"], r["status"], tuple(r["classes"].split())) for r in stated] == [
        (f.name, "faulty" if f.class_ids else "clean", f.class_ids) for f in frames
    ]
    for frame in frames:
        stored = cv2.imread(str(folder / "images" / frame.name), cv2.IMREAD_UNCHANGED)
        assert stored.shape == (128, 400, 3)
        assert np.abs(stored[..., 0].astype(int) - frame.grey_hw).mean() < 3
    note = (folder / "SYNTHETIC.txt").read_text(encoding="utf-8")
    assert "not photographed" in note
    assert json.loads(note.splitlines()[-1])["seed"] == 8


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    config = CoilConfig(frames=3, seed=2, faulty_share=0.7, size_wh=SMALL)
    first = write_severstal(config, tmp_path / "a")
    second = write_severstal(config, tmp_path / "b")
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert len(files) == 6
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_coil_without_defects_can_be_written(tmp_path: Path) -> None:
    config = CoilConfig(frames=2, faulty_share=0, size_wh=SMALL)
    folder = write_severstal(config, tmp_path)
    assert (folder / "train.csv").read_text() == "ImageId,ClassId,EncodedPixels\n"


def test_a_folder_with_files_is_refused_unless_told(tmp_path: Path) -> None:
    config = CoilConfig(frames=1, size_wh=SMALL)
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="new or empty folder"):
        write_severstal(config, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["precious.txt"]
    write_severstal(config, tmp_path, overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "mine"
    with pytest.raises(InputError, match="received the file"):
        write_severstal(config, tmp_path / "precious.txt")
