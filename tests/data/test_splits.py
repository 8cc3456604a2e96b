import csv
import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold  # type: ignore[import-untyped]

from steelsight.data.catalog import Catalog, FrameRecord
from steelsight.data.labels import FrameLabels, LabelClass, LabelSet
from steelsight.data.splits import (
    DifferenceKind,
    LeftOutReason,
    Split,
    groups_by_column,
    labels_sha256,
    load_split,
    make_split,
    merge_groups,
    parse_parts,
    split_leaks,
    verify_split,
    write_split,
)
from steelsight.defects import Reason
from steelsight.errors import InputError, LabelError

CLASS_IDS = ("1", "2", "3", "4")
TRAIN_VAL = {"train": 0.8, "val": 0.2}


def sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def record_of(
    image: str, types: Sequence[str] = (), *, column: Mapping[str, str] | None = None
) -> FrameRecord:
    labels = FrameLabels(image, dict.fromkeys(types, "1 5"), attributes=column or {})
    return FrameRecord(image, None, labels, sha256=sha256_of(image))


def catalog_of(
    records: Sequence[FrameRecord], refused: Sequence[str] = (), class_ids: Sequence[str] = "1234"
) -> Catalog:
    label_set = LabelSet(
        format="severstal",
        source=Path("/data/coils"),
        classes=tuple(LabelClass(class_id, f"type {class_id}") for class_id in class_ids),
        frames={record.image: record.labels for record in records if record.labels},
        refused=frozenset(refused),
    )
    return Catalog(label_set, tuple(records), np.zeros((len(records), 1), np.float32))


def frames_of(types_by_image: Mapping[str, str]) -> Catalog:
    return catalog_of([record_of(image, tuple(types)) for image, types in types_by_image.items()])


@pytest.fixture
def small() -> Catalog:
    """60 frames; type 1 on 12 of them, type 2 on 6, both on 2."""
    return frames_of(
        {
            f"{i:02d}.jpg": "1" * (i % 5 == 0) + "2" * (i in (0, 7, 17, 27, 30, 37))
            for i in range(60)
        }
    )


# Every split -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    types_by_image: Mapping[str, str]
    groups: Sequence[Sequence[str]]
    parts: Mapping[str, float] | None
    folds: int | None
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    types = draw(st.lists(st.sampled_from(["", "1", "2", "12", "134"]), min_size=2, max_size=30))
    images = [f"{i}.png" for i in range(len(types))]
    coils = draw(st.lists(st.integers(0, 12), min_size=len(types), max_size=len(types)))
    coils[0], coils[1] = 13, 14  # at least two groups
    groups = [[i for i, c in zip(images, coils, strict=True) if c == coil] for coil in set(coils)]
    most = len(groups)
    shares = draw(st.lists(st.integers(1, 9), min_size=2, max_size=min(most, 4)))
    by_parts = draw(st.booleans())
    return Case(
        types_by_image=dict(zip(images, types, strict=True)),
        groups=groups,
        parts={f"p{i}": s / sum(shares) for i, s in enumerate(shares)} if by_parts else None,
        folds=None if by_parts else draw(st.integers(2, most)),
        seed=draw(st.integers(0, 1 << 40)),
    )


def check_case(case: Case, shuffle: random.Random) -> None:
    catalog = frames_of(case.types_by_image)
    options: dict[str, Any] = {
        "parts": case.parts,
        "folds": case.folds,
        "seed": case.seed,
        "group_source": "column coil",
    }
    split = make_split(catalog, case.groups, **options)

    assert [frame.image for frame in split.frames] == sorted(case.types_by_image)
    assert split.images == len(case.types_by_image)
    for frame in split.frames:
        assert "".join(frame.types) == case.types_by_image[frame.image]
    for group in case.groups:
        assert len({split.assignment[image] for image in group}) == 1
    assert split_leaks(split.assignment, case.groups) == ()
    for part in split.parts:
        images = [image for image, name in split.assignment.items() if name == part.name]
        assert images
        assert split.images_of(part.name) == tuple(images)
        assert part.frames == len(images)
        assert part.clean == sum(not case.types_by_image[image] for image in images)
        assert part.faulty == part.frames - part.clean
        assert part.groups == sum(bool(set(group) & set(images)) for group in case.groups)
        assert part.frames_by_type == {
            c: sum(c in case.types_by_image[image] for image in images) for c in CLASS_IDS
        }
    assert sum(part.achieved_share for part in split.parts) == pytest.approx(1, abs=1e-5)
    assert verify_split(split, catalog, case.groups) == ()
    split.require(catalog)

    again = list(case.types_by_image.items())
    groups = [list(group) for group in case.groups]
    for items in (again, groups, *groups):
        shuffle.shuffle(items)  # type: ignore[arg-type]
    assert make_split(frames_of(dict(again)), groups, **options).to_json() == split.to_json()
    assert Split.model_validate_json(split.to_json()) == split


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_every_split_is_complete_undivided_counted_and_reproducible(
    case: Case, shuffle: random.Random
) -> None:
    check_case(case, shuffle)


@pytest.mark.soak
@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=10_000, deadline=None)
def test_ten_thousand_splits_are_complete_undivided_counted_and_reproducible(
    case: Case, shuffle: random.Random
) -> None:
    check_case(case, shuffle)


def test_another_seed_gives_another_split_of_the_same_quality(small: Catalog) -> None:
    splits = [
        make_split(small, None, folds=3, seed=seed, group_source="each frame alone")
        for seed in range(5)
    ]
    assert len({tuple(split.assignment.values()) for split in splits}) == 5
    for split in splits:
        assert {part.frames for part in split.parts} <= {19, 20, 21}
        assert [part.frames_by_type["1"] for part in split.parts] == [4, 4, 4]
        assert [part.frames_by_type["2"] for part in split.parts] == [2, 2, 2]


def test_folds_serve_as_training_and_held_out_frames(small: Catalog) -> None:
    split = make_split(small, None, folds=3, group_source="each frame alone")
    images = [record.image for record in small.records]
    folds = [split.fold(index) for index in range(3)]
    assert sorted(image for _, held_out in folds for image in held_out) == images
    assert all(sorted(train + held_out) == images for train, held_out in folds)
    for index in (-1, 3):
        with pytest.raises(InputError, match=f"fold {index} .*folds 0 to 2"):
            split.fold(index)
    with pytest.raises(InputError, match="no part 'val', expected one of fold-0, fold-1, fold-2"):
        split.images_of("val")
    named = make_split(small, None, parts=TRAIN_VAL, group_source="each frame alone")
    with pytest.raises(InputError, match="named parts, no folds"):
        named.fold(0)


# Quality -----------------------------------------------------------------------------------------


def deviations(labels_fl: np.ndarray, part_f: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Count minus wanted count, parts x labels."""
    counts_pl = np.array([labels_fl[part_f == part].sum(axis=0) for part in range(len(shares))])
    wanted_pl: np.ndarray = counts_pl - np.outer(shares, labels_fl.sum(axis=0))
    return wanted_pl


def chi_square(labels_fl: np.ndarray, part_f: np.ndarray, shares: Sequence[float]) -> float:
    wanted_pl = np.outer(shares, labels_fl.sum(axis=0))
    return float((deviations(labels_fl, part_f, shares) ** 2 / wanted_pl).sum())


def parts_of(split: Split) -> np.ndarray:
    order = {part.name: index for index, part in enumerate(split.parts)}
    return np.array([order[frame.part] for frame in split.frames])


@pytest.fixture(scope="module")
def severstal(shared_dir: Path) -> Catalog:
    """All 12,568 frames with their true types and made-up hashes."""
    with (shared_dir / "data/severstal/labels_all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return frames_of(
        {row["ImageId"]: "".join(c for c in CLASS_IDS if row[f"c{c}"] == "1") for row in rows}
    )


def labels_of(split: Split) -> np.ndarray:
    """Types, clean, pairs of types and the frame itself, frames x labels."""
    types = np.array([[c in frame.types for c in CLASS_IDS] for frame in split.frames])
    pairs = [types[:, a] & types[:, b] for a, b in combinations(range(len(CLASS_IDS)), 2)]
    every = np.column_stack([types, ~types.any(axis=1), *pairs, np.ones(len(types), np.bool_)])
    kept: np.ndarray = every[:, every.any(axis=0)].astype(np.int64)
    return kept


@pytest.mark.parametrize(
    ("parts", "folds"),
    [(None, 5), ({"train": 0.7, "val": 0.15, "test": 0.15}, None)],
    ids=["5 folds", "70/15/15"],
)
def test_severstal_is_spread_to_the_frame(
    severstal: Catalog, parts: dict[str, float] | None, folds: int | None
) -> None:
    split = make_split(severstal, None, parts=parts, folds=folds, group_source="each frame alone")
    assert split.notes == ()
    assert len(split.frames) == 12568
    labels_fl, shares = labels_of(split), [part.wanted_share for part in split.parts]
    # Types, clean steel, pairs of types and frames: none is off by a whole frame.
    assert np.abs(deviations(labels_fl, parts_of(split), shares)).max() < 1
    at_random = np.random.default_rng(0).choice(len(shares), size=len(labels_fl), p=shares)
    assert np.abs(deviations(labels_fl, at_random, shares)).max() > 20


@pytest.mark.parametrize(("mean_frames", "limit"), [(20, 0.005), (100, 0.03)])
def test_coils_of_severstal_are_spread_better_than_at_random(
    severstal: Catalog, mean_frames: int, limit: float
) -> None:
    rng = np.random.default_rng(mean_frames)
    kinds = [len(r.labels.class_ids) if r.labels else 0 for r in severstal.records]
    # Faulty frames tend to come from the same coils.
    order = np.argsort(rng.random(len(kinds)) + 0.5 * np.array(kinds))
    ends = np.cumsum(rng.lognormal(np.log(mean_frames), 0.7, len(kinds)).astype(int) + 1)
    coils = np.split(order, ends[ends < len(order)])
    groups = [[severstal.records[i].image for i in coil] for coil in coils]
    split = make_split(severstal, groups, folds=5, group_source="column coil")
    labels_fl, shares = labels_of(split)[:, :5], [0.2] * 5
    assert (
        np.abs(deviations(labels_fl, parts_of(split), shares)) < limit * labels_fl.sum(axis=0) + 1
    ).all()
    at_random = np.empty(len(order), np.int64)
    for coil in coils:
        at_random[coil] = rng.integers(5)
    chosen = chi_square(labels_fl, parts_of(split), shares)
    assert chosen < chi_square(labels_fl, at_random, shares) / 50


@pytest.mark.parametrize("seed", range(6))
def test_groups_with_one_type_per_frame_are_spread_at_least_as_well_as_by_scikit_learn(
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, size=60)
    coil_f = np.repeat(np.arange(60), sizes)
    odds = rng.dirichlet([0.5, 0.2, 2.0, 0.4, 4.0], size=60)
    type_f = np.array([rng.choice(5, p=odds[coil]) for coil in coil_f])
    images = [f"{i:04d}.png" for i in range(len(coil_f))]
    catalog = frames_of({i: "1234"[t : t + 1] for i, t in zip(images, type_f, strict=True)})
    groups = [[images[i] for i in np.flatnonzero(coil_f == coil)] for coil in range(60)]
    split = make_split(catalog, groups, folds=4, seed=seed, group_source="column coil")

    reference_f = np.empty(len(images), np.int64)
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(folds.split(images, type_f, coil_f)):
        reference_f[held_out] = fold
    labels_fl = np.column_stack([np.eye(5, dtype=np.int64)[type_f], np.ones(len(images), np.int64)])
    ours = chi_square(labels_fl, parts_of(split), [0.25] * 4)
    assert ours <= chi_square(labels_fl, reference_f, [0.25] * 4)


# What groups and rare types do -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("types", "sizes", "parts", "said"),
    [
        # The frames' types in order, and how many of them each group takes.
        (["1"] * 8 + [""] * 12, [12, 2, 2, 2, 2], TRAIN_VAL, ["larger than val", "with 12 frames"]),
        (
            ["1"] * 8 + [""] * 12,
            [8] + [1] * 12,
            TRAIN_VAL,
            ["type 1 is in 1 group only: it cannot"],
        ),
        (
            ["2"] * 2 + [""] * 18,
            [1] * 20,
            {"a": 0.4, "b": 0.3, "c": 0.3},
            ["type 2 is in 2 groups"],
        ),
        (
            ["2"] * 9 + [""] * 9,
            [9, 3, 3, 3],
            {"a": 0.5, "b": 0.5},
            ["type 2 is in 1 group only", "has 12 frames, 9 were wanted"],
        ),
        ([""] * 4 + ["1"] * 16, [4] + [1] * 16, TRAIN_VAL, ["clean steel is in 1 group only"]),
        (["1", ""] * 10, [15, 5], {"a": 0.5, "b": 0.5}, ["has 15 frames, 10 were wanted"]),
        (["1", ""] * 10, [1] * 20, TRAIN_VAL, ["type 3 is on no frame"]),
        (["1"] * 20 + [""] * 20, [11, 9, 20], {"a": 0.7, "b": 0.3}, ["type 1 is on "]),
    ],
)
def test_notes_say_what_could_not_be_had(
    types: list[str], sizes: list[int], parts: dict[str, float], said: list[str]
) -> None:
    images = [f"{i:02d}.png" for i in range(len(types))]
    ends = np.cumsum(sizes).tolist()
    groups = [images[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    catalog = frames_of(dict(zip(images, types, strict=True)))
    split = make_split(catalog, groups, parts=parts, group_source="column coil", notes=["mine"])
    assert split.notes[0] == "mine"
    for words in said:
        assert any(words in note for note in split.notes), split.notes


def test_a_group_larger_than_a_part_goes_where_there_is_room() -> None:
    images = [f"{i:02d}.png" for i in range(20)]
    split = make_split(
        frames_of(dict.fromkeys(images, "1")), [images[:12]], parts=TRAIN_VAL, group_source="coil"
    )
    assert [(part.frames, part.groups) for part in split.parts] == [(16, 5), (4, 4)]


def test_as_many_folds_as_groups_hold_one_group_each() -> None:
    images = [f"{i:02d}.png" for i in range(12)]
    groups = [images[:9], images[9:11], images[11:]]
    catalog = frames_of(dict.fromkeys(images, "1"))
    split = make_split(catalog, groups, folds=3, group_source="coil")
    assert sorted(part.frames for part in split.parts) == [1, 2, 9]
    with pytest.raises(InputError, match=r"12 usable frames in 3 groups cannot fill 4 folds"):
        make_split(catalog, groups, folds=4, group_source="coil")
    with pytest.raises(InputError, match="cannot fill 1000000000 folds"):
        make_split(catalog, groups, folds=10**9, group_source="coil")


def test_even_a_tiny_part_gets_a_frame() -> None:
    catalog = frames_of({f"{i}.png": "1" for i in range(8)})
    split = make_split(catalog, None, parts={"train": 0.99, "val": 0.01}, group_source="alone")
    assert [part.frames for part in split.parts] == [7, 1]


def test_equal_files_and_equal_pixels_stay_together() -> None:
    records = [record_of(f"{i}.png", "1") for i in range(8)]
    records[1] = replace(records[1], sha256=records[6].sha256)
    records[3] = replace(records[3], pixels_sha256="b" * 64)
    records[6] = replace(records[6], pixels_sha256="b" * 64)
    for seed in range(5):
        split = make_split(
            catalog_of(records), None, folds=2, seed=seed, group_source="each frame alone"
        )
        assert len({split.assignment[image] for image in ("1.png", "3.png", "6.png")}) == 1
    assert any("equal files or equal pixels" in note for note in split.notes)
    assert {f.group for f in split.frames if f.image in ("1.png", "3.png", "6.png")} == {"1.png"}


def test_groups_hold_together_through_a_frame_that_is_left_out() -> None:
    records = [record_of(f"{i}.png", "1") for i in range(6)]
    records[2] = replace(records[2], labels=None)
    for seed in range(5):
        split = make_split(
            catalog_of(records),
            [["0.png", "2.png"], ["2.png", "5.png"]],
            folds=2,
            seed=seed,
            group_source="near-duplicates",
        )
        assert split.assignment["0.png"] == split.assignment["5.png"]


def test_nothing_is_lost() -> None:
    records = [record_of(f"{i}.png", "1" * (i % 2)) for i in range(10)]
    labels = records[9].labels
    assert labels is not None
    records[9] = replace(records[9], labels=replace(labels, disputed=True))
    records[8] = replace(records[8], labels=None)
    records[7] = replace(records[7], labels=None)
    records[6] = replace(records[6], sha256=None, reason=Reason.UNREADABLE, detail="not there")
    records[5] = replace(records[5], reason=Reason.TRUNCATED, detail="cut off\nafter 3 bytes")
    catalog = catalog_of(records, refused=["7.png", "../no file.png", "bell\x07.png"])
    split = make_split(catalog, None, folds=2, group_source="each frame alone")
    assert [(entry.image, entry.reason, entry.detail) for entry in split.left_out] == [
        ("'bell\\x07.png'", LeftOutReason.REFUSED, None),
        ("../no file.png", LeftOutReason.REFUSED, None),
        ("5.png", LeftOutReason.UNREADABLE, "'cut off\\nafter 3 bytes'"),
        ("6.png", LeftOutReason.MISSING, None),
        ("7.png", LeftOutReason.REFUSED, None),
        ("8.png", LeftOutReason.UNLABELLED, None),
        ("9.png", LeftOutReason.DISPUTED, None),
    ]
    assert [frame.image for frame in split.frames] == [f"{i}.png" for i in range(5)]
    assert split.images == 12
    assert Split.model_validate_json(split.to_json()) == split
    assert verify_split(split, catalog) == ()
    with pytest.raises(InputError) as caught:
        make_split(catalog, None, folds=6, group_source="each frame alone")
    assert "left out are 1 missing, 1 unreadable, 3 refused, 1 unlabelled, 1 dis" in str(
        caught.value
    )


def test_a_catalog_without_a_usable_frame_says_why() -> None:
    records = [replace(record_of(f"{i}.png"), sha256=None) for i in range(3)]
    with pytest.raises(InputError, match=r"0 usable frames in 0 groups .* left out are 3 missing"):
        make_split(catalog_of(records), None, folds=2, group_source="each frame alone")


# Options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train=0.8,val=0.2", {"train": 0.8, "val": 0.2}),
        (" train = 0.7 , val=.15,test=15e-2 ", {"train": 0.7, "val": 0.15, "test": 0.15}),
        ("a=0.333333,b=0.333333,c=0.333334", {"a": 0.333333, "b": 0.333333, "c": 0.333334}),
    ],
)
def test_shares_are_read_in_their_order(text: str, expected: dict[str, float]) -> None:
    assert list(parse_parts(text).items()) == list(expected.items())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["'' is no share", "name=number"]),
        ("train", ["'train' is no share"]),
        ("train=0.8,val", ["'val' is no share"]),
        ("train=0.8,val=0.2,", ["'' is no share"]),
        ("train=80%,val=20%", ["'train=80%' is no share"]),
        ("train=80,val=20", ["'train' has the share 80", "0.2 for 20 %"]),
        ("train=1", ["1 part, expected two or more"]),
        ("train=0.8,val=0.1", ["add up to 0.9, expected 1"]),
        ("train=0.8,val=0.3", ["add up to 1.1"]),
        ("train=1.2,val=-0.2", ["'train' has the share 1.2"]),
        ("train=nan,val=0.2", ["share nan"]),
        ("train=inf,val=0.2", ["share inf"]),
        ("train=0.5,train=0.5", ["'train' occurs twice"]),
        ("train=0.5,Train=0.5", ["'train'", "different names"]),
        ("=0.5,val=0.5", ["the part ''"]),
        ("../x=0.5,val=0.5", ["'../x'", "ASCII letters"]),
        ("t\x1b[2J=0.5,val=0.5", ["'t\\x1b[2J'"]),
    ],
)
def test_wrong_shares_are_refused(text: str, said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_parts(text)
    check_line(str(caught.value), said)


def check_line(message: str, said: Sequence[str]) -> None:
    assert message.isprintable()
    assert "; " in message  # what to do
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, ["neither parts nor folds"]),
        ({"parts": TRAIN_VAL, "folds": 5}, ["both parts and folds"]),
        ({"folds": 1}, ["1 folds, expected 2 or more"]),
        ({"folds": -3}, ["-3 folds"]),
        ({"folds": 61}, ["60 usable frames in 60 groups cannot fill 61 folds"]),
        ({"parts": {"train": 0.8}}, ["1 part"]),
        ({"parts": {"train": 0.8, "val": 0.1}}, ["add up to 0.9"]),
        ({"folds": 2, "seed": -1}, ["the seed is -1"]),
        ({"folds": 2, "seed": 1 << 63}, ["the seed is 9223372036854775808"]),
        ({"folds": 2, "groups": [["00.jpg"], ["01.jpg", "none.jpg"]]}, ["group 2", "'none.jpg'"]),
        ({"folds": 2, "group_source": "a\nb"}, ["'a\\nb'", "control"]),
        ({"folds": 2, "created": "a\nb"}, ["'a\\nb'", "control"]),
    ],
)
def test_wrong_options_are_refused(
    small: Catalog, options: dict[str, Any], said: list[str]
) -> None:
    options = {"groups": None, "group_source": "coil"} | options
    with pytest.raises(InputError) as caught:
        make_split(small, options.pop("groups"), **options)
    check_line(str(caught.value), said)


def test_a_type_outside_the_classes_is_refused() -> None:
    catalog = catalog_of([record_of("a.png", "1"), record_of("b.png", "7")], class_ids="12")
    with pytest.raises(LabelError, match=r"image 'b.png': the type is '7', expected one of 1, 2;"):
        make_split(catalog, None, folds=2, group_source="alone")


# Groups ------------------------------------------------------------------------------------------


def test_frames_are_grouped_by_a_column() -> None:
    coils = {"a.png": "C1", "b.png": " C1 ", "c.png": "C2", "d.png": "", "e.png": "C2"}
    records = [record_of(image, column={"coil": coil}) for image, coil in coils.items()]
    records += [record_of("f.png"), replace(record_of("g.png"), labels=None)]
    groups, notes = groups_by_column(catalog_of(records), "coil")
    assert groups == (("a.png", "b.png"), ("c.png", "e.png"), ("d.png",), ("f.png",))
    assert notes == ("2 of 6 frames have no 'coil' and stand alone, the first is 'd.png'",)
    assert groups_by_column(catalog_of(records[:3]), "coil").notes == ()


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("Coil", ["'Coil' is not there", "'camera', 'coil', 'empty'"]),
        ("empty", ["'empty' is empty"]),
        ("a\nb", ["'a\\nb'"]),
    ],
)
def test_a_missing_column_is_refused_with_those_that_there_are(
    column: str, said: list[str]
) -> None:
    record = record_of("a.png", column={"coil": "1", "camera": "2", "empty": " "})
    with pytest.raises(InputError) as caught:
        groups_by_column(catalog_of([record]), column)
    check_line(str(caught.value), said)


def test_without_any_column_there_is_none_to_list() -> None:
    with pytest.raises(InputError, match=r"no other column either.*give it with --frame-list"):
        groups_by_column(catalog_of([record_of("a.png")]), "coil")


@given(st.lists(st.lists(st.integers(0, 30), max_size=4), max_size=12), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_merged_groups_are_connected_components(groups: list[list[int]], cut: int) -> None:
    expected = [{node} for node in range(31) if any(node in group for group in groups)]
    for group in filter(None, groups):
        touched = [component for component in expected if component & set(group)]
        expected = [c for c in expected if c not in touched] + [set().union(*touched)]
    named = [[f"{node:02d}" for node in group] for group in groups]
    merged = merge_groups(named[:cut], named[cut:])
    assert [set(map(int, group)) for group in merged] == sorted(expected, key=min)
    assert list(merged) == sorted(merged)
    assert all(list(group) == sorted(group) for group in merged)


# Hashes of labels --------------------------------------------------------------------------------


def test_the_hash_of_labels_is_that_of_the_documented_text() -> None:
    labels = FrameLabels("a.png", {"3": "7 2 12 1", "1": "1 5"}, types_without_mask=("4", "2"))
    text = '{"masks":{"1":"1 5","3":"7 2 12 1"},"types_without_mask":["2","4"]}'
    assert labels_sha256(labels) == sha256_of(text)
    assert labels_sha256(FrameLabels("b.png", {})) == sha256_of(
        '{"masks":{},"types_without_mask":[]}'
    )


def test_equal_masks_have_equal_hashes_and_others_do_not() -> None:
    labels = FrameLabels("a.png", {"1": "1 5 9 2", "2": "3 4"})
    same = FrameLabels(
        "b.png", {"2": " 3  4 ", "1": "1 2 3 3 9 1 10 1"}, size_wh=(9, 9), split="val"
    )
    assert labels_sha256(labels) == labels_sha256(same)
    others = [
        FrameLabels("a.png", {"1": "1 5 9 2"}),
        FrameLabels("a.png", {"1": "1 5 9 3", "2": "3 4"}),
        FrameLabels("a.png", {"2": "1 5 9 2", "1": "3 4"}),
        FrameLabels("a.png", {"1": "1 5 9 2"}, types_without_mask=("2",)),
        FrameLabels("a.png", {}),
    ]
    assert len({labels_sha256(frame) for frame in (labels, *others)}) == 6


# Files -------------------------------------------------------------------------------------------


@pytest.fixture
def split(small: Catalog) -> Split:
    groups = [["00.jpg", "01.jpg", "02.jpg"], ["10.jpg", "20.jpg"]]
    return make_split(small, groups, parts=TRAIN_VAL, seed=3, group_source="near-duplicates")


def test_a_file_reads_back_equal_and_is_readable(split: Split, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text("an earlier one")
    write_split(split, path)
    assert list(tmp_path.iterdir()) == [path]
    assert load_split(path) == split
    assert split.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert split.sha256.startswith(split.id)
    data = json.loads(path.read_bytes())
    assert data["source"] == "coils"
    assert data["created"] is None
    assert data["seed"] == 3
    assert [part["name"] for part in data["parts"]] == ["train", "val"]
    assert [line for line in path.read_text().splitlines() if "10.jpg" in line and "20" not in line]
    rows = [[frame[k] for k in ("image", "sha256", "labels_sha256")] for frame in data["frames"]]
    assert data["data_sha256"] == sha256_of(json.dumps(rows))


def test_the_data_hash_is_of_the_data_only(small: Catalog, split: Split) -> None:
    folds = make_split(
        small, None, folds=4, group_source="alone", created="2026-01-31", source="line 2"
    )
    assert folds.data_sha256 == split.data_sha256
    assert folds.sha256 != split.sha256
    assert (folds.created, folds.source) == ("2026-01-31", "line 2")


def test_a_failed_write_leaves_the_earlier_file(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "split.json"
    path.write_text("an earlier one")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match=r"split.json: cannot be written \(No space left"):
        write_split(split, path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"split.json": "an earlier one"}


@pytest.mark.parametrize("name", ["none/split.json", ".", ".."])
def test_a_path_that_cannot_be_written_or_read_is_refused(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        write_split(split, Path(name))
    with pytest.raises(InputError, match="cannot be read"):
        load_split(Path(name))
    assert list(tmp_path.iterdir()) == []


def changed(split: Split, *keys: str | int, to: object) -> bytes:
    data: Any = json.loads(split.to_json())
    place = data
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    return json.dumps(data).encode()


HOSTILE: list[tuple[tuple[str | int, ...], object, list[str]]] = [
    (("version",), 2, ["version: Input should be 1"]),
    (("seed",), "0", ["seed: ", "integer", "'0'"]),
    (("seed",), -1, ["seed: "]),
    (("seed",), 10**30, ["seed: "]),
    (("seed",), True, ["seed: "]),
    (("images",), 61, ["images is 61, there are 60 frames and 0 left out"]),
    (("folds",), 2, ["expected the parts fold-0 to fold-1"]),
    (("folds",), 10**15, ["expected the parts fold-0 to"]),
    (("extra",), 1, ["extra: Extra inputs are not permitted"]),
    (("a\x1b[2J" * 50,), 1, ["'a\\x1b[2Ja", "..."]),
    (("rule",), "a\nb", ["rule: ", "control", "'a\\nb'"]),
    (("frames",), [], ["frames: "]),
    (("frames",), {"a": 1}, ["frames: "]),
    (("frames", 3), None, ["frames.3: "]),
    (("frames", 3, "image"), "../a.jpg", ["frames.3.image: ", "'../a.jpg'"]),
    (("frames", 3, "image"), "/etc/passwd", ["frames.3.image: ", "'/etc/passwd'"]),
    (("frames", 3, "image"), "04.jpg", ["'04.jpg' occurs twice"]),
    (("frames", 3, "image"), "99.jpg", ["in the order of their names"]),
    (("frames", 3, "part"), "test", ["'03.jpg'", "'test' is not among the parts"]),
    (("frames", 3, "types"), ["9"], ["'03.jpg'", "the types are '9'"]),
    (("frames", 5, "types"), ["1", "1"], ["'05.jpg'", "'1, 1'", "each once"]),
    (("frames", 3, "types"), ["1"], ["part ", "faulty is "]),
    (("frames", 3, "sha256"), "ABC", ["frames.3.sha256: ", "'ABC'"]),
    (("frames", 3, "sha256"), "a" * 64, ["data_sha256 does not fit"]),
    (("frames", 3, "labels_sha256"), "a" * 64, ["data_sha256 does not fit"]),
    (("data_sha256",), "a" * 64, ["data_sha256 does not fit"]),
    (("parts", 0, "frames"), 47, ["part train: frames is 47, its frames make 48"]),
    (("parts", 0, "frames_by_type", "1"), 0, ["part train: frames_by_type is "]),
    (("parts", 0, "wanted_share"), 0.7, ["the wanted shares add up to 0.9"]),
    (("parts", 0, "wanted_share"), 1e400, ["parts.0.wanted_share: "]),
    (("parts", 0, "wanted_share"), float("nan"), ["parts.0.wanted_share: "]),
    (("parts", 0, "achieved_share"), 0.7, ["achieved_share is 0.7, its frames make 0.8"]),
    (("parts", 1, "name"), "train", ["parts: 'train' occurs twice"]),
    (("parts", 1, "name"), "a/b", ["parts.1.name: ", "'a/b'"]),
    (("classes", 1, "id"), "1", ["classes: '1' occurs twice"]),
    (
        ("left_out",),
        [{"image": "00.jpg", "reason": "unlabelled", "detail": None}],
        ["'00.jpg' occurs twice"],
    ),
    (("left_out",), [{"image": "a", "reason": "ugly"}], ["left_out.0.reason: ", "'ugly'"]),
]


@pytest.mark.parametrize(("keys", "value", "said"), HOSTILE)
def test_a_changed_file_is_refused_in_one_line(
    split: Split, tmp_path: Path, keys: tuple[str | int, ...], value: object, said: list[str]
) -> None:
    path = tmp_path / "split.json"
    path.write_bytes(changed(split, *keys, to=value))
    with pytest.raises(InputError) as caught:
        load_split(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 450 + len(str(path))
    check_line(str(caught.value), said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"null", "object"),
        (b"[]", "object"),
        (b"{}", "made_by: Field required"),
        (b"[" * 100_000, "Invalid JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "Invalid JSON"),
        (b'{"made_by": "\\ud800"}', "Invalid JSON"),
        (b"ImageId,ClassId,EncodedPixels\n" * 1000, "Invalid JSON"),
    ],
)
def test_what_is_no_split_at_all_is_refused_in_one_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "split.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_split(path)
    assert len(str(caught.value)) < 450 + len(str(path))
    check_line(str(caught.value), [said])


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("seed",), 4),
        (("made_by",), "steelsight 9"),
        (("created",), "2026-01-31"),
        (("source",), "other coils"),
        (("rule",), "by hand"),
        (("group_source",), "column coil"),
        (("classes", 0, "name"), "another name"),
        (("notes",), ["nothing to say"]),
        (("manifest_sha256",), "a" * 64),
    ],
)
def test_no_field_can_be_edited_unnoticed(
    split: Split, tmp_path: Path, keys: tuple[str | int, ...], value: object
) -> None:
    path = tmp_path / "split.json"
    path.write_bytes(changed(split, *keys, to=value))
    with pytest.raises(InputError, match="manifest_sha256 does not fit: something") as caught:
        load_split(path)
    check_line(str(caught.value), [str(path), "make the split again"])


def test_groups_cannot_be_edited_unnoticed(split: Split, tmp_path: Path) -> None:
    """Two frames that stood alone become a group, and the count of groups is mended too."""
    content = json.loads(split.to_json())
    sizes = Counter(frame.group for frame in split.frames)
    alone = [f for f in content["frames"] if sizes[f["group"]] == 1 and f["part"] == "train"]
    alone[1]["group"] = alone[0]["group"]
    content["parts"][0]["groups"] -= 1
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="manifest_sha256 does not fit"):
        load_split(path)


def test_a_left_out_image_is_under_the_hash_too(tmp_path: Path) -> None:
    records = [record_of("a.png"), record_of("b.png", "1"), FrameRecord("c.png", None, None)]
    made = make_split(catalog_of(records), None, folds=2, group_source="alone")
    path = tmp_path / "split.json"
    path.write_bytes(changed(made, "left_out", 0, "reason", to="disputed"))
    with pytest.raises(InputError, match="manifest_sha256 does not fit"):
        load_split(path)


def test_the_hash_of_the_manifest_is_that_of_the_documented_text(
    split: Split, tmp_path: Path
) -> None:
    content = json.loads(split.to_json())
    told = content.pop("manifest_sha256")
    assert told == sha256_of(json.dumps(content, sort_keys=True, separators=(",", ":")))
    # Layout and order of keys are nobody's business: a formatter may have been at it.
    path = tmp_path / "split.json"
    path.write_text(json.dumps({**content, "manifest_sha256": told}, sort_keys=True, indent=4))
    assert load_split(path) == split


def test_a_manifest_without_its_hash_is_refused(split: Split, tmp_path: Path) -> None:
    content = json.loads(split.to_json())
    del content["manifest_sha256"]
    (tmp_path / "split.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="manifest_sha256: Field required; make the split again"):
        load_split(tmp_path / "split.json")


@pytest.mark.parametrize("key", ["seed", "image"])
def test_a_key_twice_is_refused(split: Split, tmp_path: Path, key: str) -> None:
    """Even where the last one, which counts, is the right one."""
    path = tmp_path / "split.json"
    text = split.to_json().decode()
    path.write_text(text.replace(f'"{key}": ', f'"{key}": 7, "{key}": ', 1))
    with pytest.raises(InputError) as caught:
        load_split(path)
    check_line(str(caught.value), [f"{path}: key twice in an object: '{key}'; make the split"])


def test_a_group_or_file_that_crosses_parts_is_refused(split: Split, tmp_path: Path) -> None:
    train, val = split.images_of("train"), split.images_of("val")
    images = [frame.image for frame in split.frames]
    for key, said in (("group", "the group"), ("sha256", "the file")):
        content = changed(
            split, "frames", images.index(train[-1]), key, to=getattr(frame_of(split, val[-1]), key)
        )
        (tmp_path / "split.json").write_bytes(content)
        with pytest.raises(InputError, match=f"{said} .* crosses parts: .* in train") as caught:
            load_split(tmp_path / "split.json")
        check_line(str(caught.value), [repr(train[-1]), repr(val[-1])])


def frame_of(split: Split, image: str) -> Any:
    return next(frame for frame in split.frames if frame.image == image)


def test_a_file_that_is_too_large_is_refused(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelsight.data.splits.MAX_FILE_BYTES", 1000)
    write_split(split, tmp_path / "split.json")
    with pytest.raises(InputError, match="more than 1000 bytes"):
        load_split(tmp_path / "split.json")


# Data that changed -------------------------------------------------------------------------------


def with_record(catalog: Catalog, image: str, record: FrameRecord | None) -> Catalog:
    kept = {r.image: r for r in catalog.records if r.image != image}
    if record is not None:
        kept[record.image] = record
    return replace(catalog, records=tuple(kept[name] for name in sorted(kept)))


DISPUTED = FrameLabels("03.jpg", {}, disputed=True)


@pytest.mark.parametrize(
    ("record", "kind", "said"),
    [
        (None, DifferenceKind.MISSING, "'03.jpg' is missing"),
        (
            replace(record_of("03.jpg"), sha256=None, reason=Reason.UNREADABLE),
            DifferenceKind.MISSING,
            "is missing",
        ),
        (
            replace(record_of("03.jpg"), reason=Reason.TRUNCATED, detail="cut off"),
            DifferenceKind.MISSING,
            "'03.jpg' is unreadable (cut off)",
        ),
        (replace(record_of("03.jpg"), sha256="a" * 64), DifferenceKind.CONTENT, "another file"),
        (record_of("03.jpg", "24"), DifferenceKind.LABELS, "(types none, now 2, 4)"),
        (replace(record_of("03.jpg"), labels=None), DifferenceKind.LABELS, "is unlabelled now"),
        (replace(record_of("03.jpg"), labels=DISPUTED), DifferenceKind.LABELS, "is disputed now"),
    ],
)
def test_a_changed_frame_is_named_and_stops_training(
    small: Catalog, split: Split, record: FrameRecord | None, kind: DifferenceKind, said: str
) -> None:
    catalog = with_record(small, "03.jpg", record)
    (difference,) = verify_split(split, catalog)
    assert (difference.kind, difference.image) == (kind, "03.jpg")
    assert said in str(difference)
    with pytest.raises(InputError) as caught:
        split.require(catalog)
    check_line(str(caught.value), [said, f"split {split.id} of coils", "in 1 place from"])


def test_a_changed_mask_is_a_changed_label(small: Catalog, split: Split) -> None:
    record = replace(record_of("05.jpg"), labels=FrameLabels("05.jpg", {"1": "1 6"}))
    (difference,) = verify_split(split, with_record(small, "05.jpg", record))
    assert str(difference) == "'05.jpg' has other labels (another mask)"


def test_a_frame_refused_by_now_stops_training(small: Catalog, split: Split) -> None:
    catalog = with_record(small, "03.jpg", replace(record_of("03.jpg"), labels=None))
    label_set = replace(catalog.label_set, refused=frozenset({"03.jpg"}))
    (difference,) = verify_split(split, replace(catalog, label_set=label_set))
    assert str(difference) == "'03.jpg' is refused now"


def test_new_images_are_told_and_do_not_stop_training(small: Catalog, split: Split) -> None:
    catalog = with_record(small, "", record_of("new.jpg", "1"))
    catalog = with_record(catalog, "", replace(record_of("raw.jpg"), labels=None))
    assert [(d.kind, str(d)) for d in verify_split(split, catalog)] == [
        (DifferenceKind.NEW, "'new.jpg' was not there when split, now can be used"),
        (DifferenceKind.NEW, "'raw.jpg' was not there when split, now is unlabelled"),
    ]
    split.require(catalog)


def test_a_frame_that_was_left_out_and_can_be_used_now_is_new() -> None:
    records = [record_of(f"{i}.png") for i in range(5)]
    unlabelled = replace(record_of("5.png"), labels=None)
    split = make_split(
        catalog_of([*records, unlabelled]), None, folds=2, group_source="each frame alone"
    )
    assert verify_split(split, catalog_of([*records, unlabelled])) == ()
    (difference,) = verify_split(split, catalog_of([*records, record_of("5.png")]))
    assert str(difference) == "'5.png' was unlabelled when split, now can be used"


def test_many_changes_are_counted_and_the_first_ones_named(small: Catalog, split: Split) -> None:
    with pytest.raises(InputError) as caught:
        split.require(replace(small, records=small.records[:20]))
    message = str(caught.value)
    check_line(
        message,
        [
            "in 40 places from those that were split: '20.jpg' is missing; '21.jpg' is",
            "; and 37 more; restore",
        ],
    )
    assert "'23.jpg'" not in message


def test_groups_found_later_are_checked_against_the_parts(small: Catalog, split: Split) -> None:
    train, val = split.images_of("train"), split.images_of("val")
    found = verify_split(split, small, [train[:2], (val[0], train[5])])
    assert [d.kind for d in found] == [DifferenceKind.CROSSING]
    assert str(found[0]).endswith(f"crosses parts: train: {train[5]!r}; val: {val[0]!r}")


def test_leaks_are_groups_with_frames_in_several_parts() -> None:
    assignment = {"a": "train", "b": "train", "c": "test", "d": "val", "e": "test"}
    groups = [("d", "c", "b"), ("a", "b"), ("e", "unknown"), ("a", "e"), ("x", "y")]
    leaks = split_leaks(assignment, groups)
    assert [leak.images_by_part for leak in leaks] == [
        {"test": ("e",), "train": ("a",)},
        {"test": ("c",), "train": ("b",), "val": ("d",)},
    ]
    assert leaks[1].images == ("b", "c", "d")
    assert str(leaks[1]) == "test: 'c'; train: 'b'; val: 'd'"


def test_the_leaks_of_the_published_neu_seg_split_are_found(shared_dir: Path) -> None:
    families = json.loads((shared_dir / "data/neu_seg_leak/duplicate_groups.json").read_bytes())
    images = [image for family in families for image in family]
    leaks = split_leaks({image: image.split("/")[1] for image in images}, families)
    spanning = [f for f in families if len({image.split("/")[1] for image in f}) > 1]
    assert len(leaks) == len(spanning) >= 60
    assert Counter(tuple(leak.images_by_part) for leak in leaks) == {
        ("test", "training"): len(leaks)
    }

    catalog = catalog_of([record_of(image, "1") for image in images])
    split = make_split(catalog, families, parts=TRAIN_VAL, group_source="near-duplicates")
    assert split_leaks(split.assignment, families) == ()
