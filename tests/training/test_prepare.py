from dataclasses import replace
from pathlib import Path

import pytest

from steelsight.data.catalog import Catalog, scan
from steelsight.data.formats.registry import load
from steelsight.data.labels import FrameLabels, LabelClass
from steelsight.data.splits import Split, make_split
from steelsight.data.synthetic import CoilConfig, write_severstal
from steelsight.errors import InputError, LabelError
from steelsight.training.prepare import TrainingData, prepare


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("drawn")
    write_severstal(CoilConfig(frames=40, seed=3, faulty_share=0.7, size_wh=(320, 128)), folder)
    return scan(load(folder))


@pytest.fixture(scope="module")
def split(drawn: Catalog) -> Split:
    return make_split(drawn, None, folds=2, group_source="none")


def with_frame(catalog: Catalog, image: str, **changes: object) -> Catalog:
    records = tuple(
        replace(r, labels=replace(r.labels, **changes)) if r.image == image and r.labels else r
        for r in catalog.records
    )
    return replace(catalog, records=records)


def ready(catalog: Catalog, split: Split, fold: int = 0, **more: Catalog) -> TrainingData:
    return prepare(catalog, split, *split.fold(fold), more)


def masked_image(catalog: Catalog) -> str:
    return next(r.image for r in catalog.records if r.labels and r.labels.rle_by_class)


def test_every_frame_of_the_split_is_learned_from_or_held_out(drawn: Catalog, split: Split) -> None:
    data = ready(drawn, split)
    assert {f.image for f in data.train} == set(split.fold(0)[0])
    assert {f.image for f in data.held_out} == set(split.fold(0)[1])
    assert data.tile_wh == (320, 128)
    assert data.grey
    record = next(r for r in drawn.records if r.image == data.train[0].image)
    assert record.labels is not None
    assert data.train[0].rle_by_class == record.labels.rle_by_class
    counts = data.to_json()["train"]
    assert counts["faulty"] + counts["clean"] == counts["frames"] == len(data.train)


def test_a_frame_with_a_type_of_unknown_place_is_measured_but_not_learned_from(
    drawn: Catalog,
) -> None:
    image = masked_image(drawn)
    labels = next(r.labels for r in drawn.records if r.image == image)
    assert labels is not None
    moved = dict(labels.rle_by_class)
    gone = next(iter(moved))
    del moved[gone]
    changed = with_frame(drawn, image, rle_by_class=moved, types_without_mask=(gone,))
    split = make_split(changed, None, folds=2, group_source="none")
    for fold in (0, 1):
        data = ready(changed, split, fold)
        learned = image in split.fold(fold)[0]
        assert any("without a mask" in note for note in data.notes) == learned
        assert image not in {f.image for f in data.train}
        assert (image in {f.image for f in data.held_out}) != learned


def test_data_that_were_not_split_are_refused(drawn: Catalog, split: Split) -> None:
    image = masked_image(drawn)
    changed = with_frame(drawn, image, rle_by_class={})
    with pytest.raises(InputError, match="differ in 1 place"):
        ready(changed, split)


def test_a_type_without_an_example_stops_the_run_before_it_begins(drawn: Catalog) -> None:
    classes = (*drawn.label_set.classes, LabelClass("rust", "Rust"))
    changed = replace(drawn, label_set=replace(drawn.label_set, classes=classes))
    split = make_split(changed, None, folds=2, group_source="none")
    with pytest.raises(InputError, match=r"at least one frame with a mask.*none of Rust"):
        ready(changed, split)


def test_labels_of_another_size_are_refused(drawn: Catalog) -> None:
    image = masked_image(drawn)
    changed = with_frame(drawn, image, size_wh=(640, 128))
    split = make_split(changed, None, folds=2, group_source="none")
    with pytest.raises(LabelError, match="labels are for 640 x 128 px, the image has 320 x 128"):
        ready(changed, split)


def test_a_mask_past_the_frame_is_refused(drawn: Catalog) -> None:
    image = masked_image(drawn)
    changed = with_frame(drawn, image, rle_by_class={"1": f"{320 * 128} 2"})
    split = make_split(changed, None, folds=2, group_source="none")
    with pytest.raises(LabelError, match=image):
        ready(changed, split)


def test_nothing_held_out_is_refused_unless_it_is_meant(drawn: Catalog, split: Split) -> None:
    everything = [frame.image for frame in split.frames]
    with pytest.raises(InputError, match="none is held out"):
        prepare(drawn, split, everything, ())
    data = prepare(drawn, split, everything, (), measured=False)
    assert len(data.train) == len(everything)


def test_further_frames_are_learned_from_only(drawn: Catalog, split: Split, tmp_path: Path) -> None:
    write_severstal(CoilConfig(frames=6, seed=9, size_wh=(320, 128)), tmp_path / "more")
    more = scan(load(tmp_path / "more"))
    plain, data = ready(drawn, split), ready(drawn, split, more=more)
    assert len(data.train) == len(plain.train) + 6
    assert data.held_out == plain.held_out
    assert {f.image for f in data.train[len(plain.train) :]} == {
        f"more/{r.image}" for r in more.records
    }
    assert data.data_sha256 != plain.data_sha256


def test_further_frames_that_are_in_the_data_set_would_leak(drawn: Catalog, split: Split) -> None:
    with pytest.raises(InputError, match=r"has the pixels of .* held-out frame"):
        ready(drawn, split, again=drawn)


def test_further_frames_bring_no_new_type(drawn: Catalog, split: Split) -> None:
    other = replace(
        drawn, label_set=replace(drawn.label_set, classes=(LabelClass("a", "a"),)), records=()
    )
    with pytest.raises(InputError, match=r"no other types than .*, got a;"):
        ready(drawn, split, other=other)


def test_tiny_frames_are_refused(drawn: Catalog, split: Split) -> None:
    image = masked_image(drawn)
    records = tuple(
        replace(r, size_wh=(63, 128), labels=FrameLabels(image, {})) if r.image == image else r
        for r in drawn.records
    )
    changed = replace(drawn, records=records)
    split = make_split(changed, None, folds=2, group_source="none")
    with pytest.raises(InputError, match="at least 64 x 64 px, got 63 x 128"):
        ready(changed, split)
