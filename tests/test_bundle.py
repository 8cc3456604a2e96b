import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steelsight import __version__
from steelsight.bundle import (
    CARD,
    DECISION,
    DEFAULT_BUNDLE,
    MANIFEST,
    PARITY,
    Bundle,
    ClassEntry,
    InputEntry,
    Manifest,
    Precision,
    SegmenterInput,
    TrainingEntry,
    class_entries,
    file_entry,
    find_bundle,
    load_bundle,
    shipped_bundles,
    write_manifest,
)
from steelsight.defects import DefectClass
from steelsight.errors import BundleError, InputError

DECISION_FILE = """\
version = 1
name = "test"
rule = "picked by hand"
chosen_on = "nothing"
gate = {clear_below = 0.25, ng_from = 0.75}
input = {min_contrast = 2.0}
types.scratch = {label_from = 0.5, pixel_from = 0.5, min_area_px = 10}
types.inclusion = {label_from = 0.5, pixel_from = 0.5, min_area_px = 10}
"""
CARD_TEXT = """\
# tiny

## In short

Two lines
in short.

## Limits

It knows nothing.
"""
PARITY_REPORT = {
    "passed": True,
    "self_test": {"verdict": "OK", "faulty_probability": 0.125, "defects": []},
}
CHECKED = ("gate.onnx", "segmenter.onnx", PARITY, "self_test.png")
"""Files that the manifest names with their sha256; a bundle does not look inside the networks."""


def manifest_of(folder: Path, **changes: Any) -> Manifest:
    return Manifest(
        **{
            "format": 2,
            "name": "tiny",
            "precision": Precision.FP32,
            "code_version": __version__,
            "input": InputEntry(
                channels=1,
                monochrome=True,
                multiple_of=32,
                tile_wh=(1600, 256),
                tile_overlap_px=64,
                min_wh=(64, 64),
            ),
            "classes": (
                ClassEntry(id="scratch", name="Scratch", colour="#ff8800"),
                ClassEntry(id="inclusion", name="Inclusion", colour="#0088ff"),
            ),
            "gate": file_entry(folder / "gate.onnx"),
            "segmenter": file_entry(folder / "segmenter.onnx"),
            "parity": file_entry(folder / PARITY),
            "self_test": file_entry(folder / "self_test.png"),
            "training": TrainingEntry(data="nothing", terms="none", weights_sha256="0" * 64),
        }
        | changes
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle as small as the checks allow."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in CHECKED:
        (folder / name).write_bytes(f"content of {name}".encode())
    (folder / PARITY).write_text(json.dumps(PARITY_REPORT))
    (folder / CARD).write_text(CARD_TEXT)
    (folder / DECISION).write_text(DECISION_FILE)
    write_manifest(folder, manifest_of(folder))
    return folder


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle()


def refusal_of(folder: Path) -> str:
    with pytest.raises(BundleError) as refusal:
        load_bundle(folder)
    message = str(refusal.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# The bundle that ships ---------------------------------------------------------------------------


def test_the_shipped_bundle_is_whole(shipped: Bundle) -> None:
    assert shipped.folder == DEFAULT_BUNDLE
    assert shipped.manifest.precision is Precision.INT8
    assert re.fullmatch("severstal-r50@[0-9a-f]{8}", shipped.id)
    assert [c.id for c in shipped.classes] == ["1", "2", "3", "4"]
    assert len({c.colour for c in shipped.classes}) == 4
    assert list(shipped.decision.types) == ["1", "2", "3", "4"]
    assert shipped.parity["passed"] is True


@pytest.mark.parametrize("name", shipped_bundles())
def test_a_name_means_what_is_shipped_unless_a_folder_is_called_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_bundle(Path(name)) == DEFAULT_BUNDLE.parent / name
    assert load_bundle(Path(name)).id.startswith(f"{name}@")
    (tmp_path / name).mkdir()
    assert find_bundle(Path(name)) == Path(name)
    with pytest.raises(BundleError, match="expected a bundle"):
        load_bundle(Path(name))


@pytest.mark.parametrize("given", ["other", "bundled/severstal-r50", "../severstal-r50", ".", ""])
def test_other_names_are_folders(given: str) -> None:
    assert find_bundle(Path(given)) == Path(given)


def test_a_wrong_name_is_told_with_the_right_ones() -> None:
    with pytest.raises(BundleError, match=f"or one of {', '.join(shipped_bundles())}"):
        load_bundle(Path("severstal"))


@pytest.mark.parametrize("name", shipped_bundles())
def test_the_shipped_folder_is_small_and_holds_nothing_else(name: str) -> None:
    shipped = load_bundle(Path(name))
    manifest = shipped.manifest
    entries = [manifest.gate, manifest.segmenter, manifest.parity, manifest.self_test]
    names = {MANIFEST, CARD, DECISION}
    if manifest.first_look is not None:
        entries.append(manifest.first_look)
        names.add("first-look.toml")
    assert {path.name for path in shipped.folder.iterdir()} == names | {e.file for e in entries}
    assert sum(path.stat().st_size for path in shipped.folder.iterdir()) < 40e6


def test_the_smaller_bundle_is_the_first_look_of_the_default(shipped: Bundle) -> None:
    smaller, first = load_bundle(Path("severstal-fastest")), shipped.manifest.first_look
    assert first is not None
    assert (first.model, first.sha256) == (smaller.id, smaller.manifest.gate.sha256)
    assert smaller.classes == shipped.classes


def test_the_card_says_what_a_buyer_must_know(shipped: Bundle) -> None:
    card = shipped.card
    headings = re.findall("(?m)^## (.+)$", card)
    for topic in ("short", "terms", "figures", "Limits"):
        assert any(topic in heading for heading in headings), topic
    text = " ".join(card.split())
    for said in (
        "belong to PAO Severstal",  # whose frames
        "permission before commercial use",  # on which terms
        "Keras Applications' ImageNet ResNet50 (MIT)",  # what it started from
        "The frame `self_test.jpg` is drawn, not photographed",
        "0.976 [0.954, 0.992]",  # held back: AUROC with its interval
        "0.44 [0.31, 0.55]",  # held back: mean Dice
        "three networks of the same recipe",  # whose figures the out-of-fold ones are
        "7 / 4 / 14 / 4",  # on how few frames the Dice stands
        "frames of the training set",  # parity is no measure of accuracy
        "until measured",  # limits
    ):
        assert said in text, said


def test_the_summary_of_the_shipped_card_tells_what_it_is_not(shipped: Bundle) -> None:
    assert shipped.card_summary.startswith("One ResNet50 encoder")
    assert "not validated for any line" in " ".join(shipped.card_summary.split())
    assert "#" not in shipped.card_summary


def test_the_self_test_frame_is_drawn(shipped: Bundle, shared_dir: Path) -> None:
    """None of the research frames may be shipped: the self-test frame equals none of them."""
    frame = shipped.self_test_path.read_bytes()
    frames = [
        *shared_dir.glob("data/severstal/images/*.jpg"),
        *shared_dir.glob("data/severstal/test_images/*.jpg"),
    ]
    assert len(frames) > 700
    assert all(path.stat().st_size != len(frame) or path.read_bytes() != frame for path in frames)


# A bundle that was altered -----------------------------------------------------------------------


def test_an_untouched_bundle_loads(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert bundle.classes == (
        DefectClass("scratch", "Scratch", "#ff8800"),
        DefectClass("inclusion", "Inclusion", "#0088ff"),
    )
    assert bundle.gate_path == folder / "gate.onnx"
    assert bundle.segmenter_path == folder / "segmenter.onnx"
    assert bundle.self_test_path == folder / "self_test.png"
    assert bundle.card == CARD_TEXT


@pytest.mark.parametrize("name", CHECKED)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(data=st.data())
def test_any_changed_byte_is_noticed(folder: Path, name: str, data: st.DataObject) -> None:
    path = folder / name
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    try:
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        assert f"{name}: expected sha256" in refusal_of(folder)
    finally:
        path.write_bytes(content)
    assert load_bundle(folder).id


@pytest.mark.parametrize("name", ["gate", "segmenter", "parity", "self_test"])
def test_a_bit_flipped_in_the_shipped_files_is_noticed(
    shipped: Bundle, tmp_path: Path, name: str
) -> None:
    for path in DEFAULT_BUNDLE.iterdir():
        (tmp_path / path.name).symlink_to(path)
    path = tmp_path / getattr(shipped.manifest, name).file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.unlink()
    path.write_bytes(content)
    assert "the file was altered or cut" in refusal_of(tmp_path)


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("keep", [0, 5])
def test_a_cut_file_is_noticed(folder: Path, name: str, keep: int) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:keep])
    assert "the file was altered or cut" in refusal_of(folder)


@pytest.mark.parametrize("name", [*CHECKED, CARD, MANIFEST])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"expected {name}" in refusal_of(folder) or name == MANIFEST


def test_a_missing_decision_file_is_named(folder: Path) -> None:
    (folder / DECISION).unlink()
    with pytest.raises(InputError, match=f"expected a decision file at .*{DECISION}"):
        load_bundle(folder)


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty folder"])
def test_no_bundle_at_all(tmp_path: Path, what: str) -> None:
    path = tmp_path / "bundle"
    if what == "a file":
        path.write_text("hello")
    elif what == "an empty folder":
        path.mkdir()
    assert f"a folder with {MANIFEST}" in refusal_of(path)


def test_another_decision_changes_the_decision_and_not_the_model(folder: Path) -> None:
    before = load_bundle(folder)
    edit(folder / DECISION, "picked by hand", "picked by you")
    after = load_bundle(folder)
    assert after.id == before.id
    assert after.decision.id != before.decision.id


def test_the_card_may_be_edited(folder: Path) -> None:
    before = load_bundle(folder)
    edit(folder / CARD, "It knows nothing.", "It knows our line 3.")
    after = load_bundle(folder)
    assert after.id == before.id
    assert "line 3" in after.card


def test_a_decision_file_of_ones_own(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(DECISION_FILE.replace("ng_from = 0.75", "ng_from = 0.5"))
    assert load_bundle(folder, mine).decision.gate.ng_from == 0.5
    assert load_bundle(folder).decision.gate.ng_from == 0.75


@pytest.mark.parametrize(
    "parity", [{"passed": False}, {"passed": "yes"}, {"passed": 1}, {"passed": None}]
)
def test_a_bundle_that_failed_its_parity_is_refused(
    folder: Path, parity: dict[str, object]
) -> None:
    (folder / PARITY).write_text(json.dumps(PARITY_REPORT | parity))
    write_manifest(folder, manifest_of(folder))
    assert "parity check against the trained network failed" in refusal_of(folder)


@pytest.mark.parametrize("parity", ["not JSON", "", "[]", "null"])
def test_a_parity_file_that_is_none_is_refused(folder: Path, parity: str) -> None:
    (folder / PARITY).write_text(parity)
    write_manifest(folder, manifest_of(folder))
    assert PARITY in refusal_of(folder)


# The manifest ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("format = 2", "format = 3", "format"),
        ("format = 2\n", "", "format"),
        ("format = 2", "format = 2\nspeed = 5", "speed"),
        ('name = "tiny"', 'name = "a b"', "name"),
        ('precision = "fp32"', 'precision = "fp16"', "precision"),
        ("channels = 1", "channels = 3", "input.channels"),
        ("monochrome = true\n", "", "input.monochrome"),
        ("multiple_of = 32", "multiple_of = 0", "input.multiple_of"),
        ("multiple_of = 32", "multiple_of = 32\nscale = 2", "input.scale"),
        ("tile_wh = [1600, 256]", "tile_wh = [1600]", "input.tile_wh.1"),
        ("tile_overlap_px = 64", "tile_overlap_px = -1", "input.tile_overlap_px"),
        ("#ff8800", "orange", "classes.0.colour"),
        ('id = "inclusion"', 'id = "in clusion"', "classes.1.id"),
        ("[gate]", "[gatekeeper]", "gate"),
        ("[training]", "[trained]", "training"),
        ('file = "gate.onnx"', 'file = "../gate.onnx"', "gate.file"),
        ('file = "gate.onnx"', 'file = "/etc/passwd"', "gate.file"),
        ('file = "gate.onnx"', 'file = "a/gate.onnx"', "gate.file"),
        ('file = "gate.onnx"', 'file = "a\\\\gate.onnx"', "gate.file"),
        ('file = "gate.onnx"', 'file = ".."', "gate.file"),
        ('file = "gate.onnx"', 'file = ""', "gate.file"),
        ('file = "gate.onnx"', 'file = "gate.onnx\\n"', "gate.file"),
        ('file = "self_test.png"', 'file = "../self_test.png"', "self_test.file"),
        ('file = "parity.json"', 'file = "C:parity.json"', "parity.file"),
    ],
)
def test_a_wrong_manifest_is_refused_in_one_line_that_names_the_key(
    folder: Path, old: str, new: str, key: str
) -> None:
    edit(folder / MANIFEST, old, new)
    assert f"{MANIFEST}: {key}: " in refusal_of(folder)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tile_overlap_px = 64", "tile_overlap_px = 256", "tile_overlap_px must be less"),
        ("tile_wh = [1600, 256]", "tile_wh = [0, 256]", "at least 1"),
        ("min_wh = [64, 64]", "min_wh = [64, -1]", "at least 1"),
        ('id = "inclusion"', 'id = "scratch"', "same id"),
        ('id = "inclusion"', 'id = "_crack"', "pattern"),
        ("format = 2", 'format = 2\nsegmenter_takes = "masks"', "segmenter_takes"),
        ('id = "inclusion"', 'id = "-1"', "pattern"),
    ],
)
def test_a_manifest_that_no_run_could_follow_is_refused(
    folder: Path, old: str, new: str, said: str
) -> None:
    edit(folder / MANIFEST, old, new)
    assert said in refusal_of(folder)


@pytest.mark.parametrize("name", ["gate", "segmenter", "parity", "self_test"])
@pytest.mark.parametrize("sha256", ["0" * 63, "0" * 65, "G" * 64, ""])
def test_a_checksum_that_is_none_is_refused(folder: Path, name: str, sha256: str) -> None:
    text = (folder / MANIFEST).read_text()
    changed = re.sub(rf'(\[{name}\]\nfile = .*\nsha256 = ")[0-9a-f]*', rf"\g<1>{sha256}", text)
    assert changed != text
    (folder / MANIFEST).write_text(changed)
    assert f"{name}.sha256" in refusal_of(folder)


@pytest.mark.parametrize("content", [b"format = ", b"\xff\xfe", b"format: 1"])
def test_a_manifest_that_is_no_toml_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    assert "expected TOML" in refusal_of(folder)


def test_a_changed_manifest_is_another_model(folder: Path) -> None:
    before = load_bundle(folder).id
    edit(folder / MANIFEST, 'terms = "none"', 'terms = "ours"')
    assert load_bundle(folder).id != before


PLAIN = st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(data=PLAIN, terms=PLAIN)
def test_a_written_manifest_reads_back_the_same(folder: Path, data: str, terms: str) -> None:
    training = TrainingEntry(data=data, terms=terms, weights_sha256="0" * 64)
    written = manifest_of(folder, training=training)
    path = write_manifest(folder, written)
    assert path == folder / MANIFEST
    assert load_bundle(folder).manifest == written
    # As any other TOML reader sees it:
    assert tomllib.loads(path.read_text(encoding="utf-8"))["training"]["terms"] == terms


@pytest.mark.parametrize(
    "text",
    ['"quoted"', "a\\b", "it's", "Größe 5 µm × 2", "# no comment", "日本", "{x} = [1]", "🙂"],
)
def test_texts_of_all_kinds_survive(folder: Path, text: str) -> None:
    classes = (ClassEntry(id="scratch", name=text, colour="#FF8800"),)
    assert write_and_load(folder, classes=classes).classes[0].name == text


def write_and_load(folder: Path, **changes: Any) -> Manifest:
    write_manifest(folder, manifest_of(folder, **changes))
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    return Manifest(**tomllib.loads(text))


@pytest.mark.parametrize("text", ["two\nlines", "a\rb", "tab\tbed", "nul\0", "del\x7f", "ls\u2028"])
def test_line_breaks_and_control_characters_are_refused(folder: Path, text: str) -> None:
    before = (folder / MANIFEST).read_bytes()
    training = TrainingEntry(data=text, terms="none", weights_sha256="0" * 64)
    with pytest.raises(InputError, match="expected plain text") as refusal:
        write_manifest(folder, manifest_of(folder, training=training))
    assert "\n" not in str(refusal.value)
    assert (folder / MANIFEST).read_bytes() == before


@pytest.mark.parametrize(
    ("card", "summary"),
    [
        (CARD_TEXT, "Two lines\nin short."),
        ("# tiny\nOnly this.\n", "Only this."),
        ("# tiny\n\n## In short\nYes.", "Yes."),
        ("# tiny\n\nBefore.\n\n## A\n\nFirst.\n\n### Part\n\nMore.\n\n## B\n\nLast.\n",
         "First.\n\n### Part\n\nMore."),
        ("", ""),
    ],
)  # fmt: skip
def test_the_summary_is_the_cards_first_section(folder: Path, card: str, summary: str) -> None:
    (folder / CARD).write_text(card)
    assert load_bundle(folder).card_summary == summary


def test_bundles_can_be_moved(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "else where" / "bündel"
    shutil.copytree(folder, moved)
    assert load_bundle(moved).id == load_bundle(folder).id


def test_an_entry_is_the_name_and_the_sha256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "abc.onnx").write_bytes(b"abc")
    entry = file_entry(tmp_path / "abc.onnx")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (entry.file, entry.sha256) == ("abc.onnx", expected)


# Later additions, which older manifests do not have -----------------------------------------------


def test_the_shipped_manifest_written_again_is_the_same_to_the_byte(
    shipped: Bundle, tmp_path: Path
) -> None:
    """Its sha256 is the model's identity in every result."""
    written = write_manifest(tmp_path, shipped.manifest)
    assert written.read_bytes() == (DEFAULT_BUNDLE / MANIFEST).read_bytes()
    assert shipped.manifest.segmenter_takes is SegmenterInput.FEATURES
    assert shipped.manifest.weights is None


def test_a_segmenter_that_takes_frames_is_read_back(folder: Path) -> None:
    assert load_bundle(folder).manifest.segmenter_takes is SegmenterInput.FEATURES
    written = write_and_load(folder, segmenter_takes=SegmenterInput.FRAMES)
    assert written.segmenter_takes is SegmenterInput.FRAMES
    assert 'segmenter_takes = "frames"\n' in (folder / MANIFEST).read_text()


def test_weights_are_checked_when_they_are_used(folder: Path) -> None:
    """Inspecting needs no weights: they may be left behind."""
    with pytest.raises(BundleError, match="it was made without; give"):
        load_bundle(folder).weights()
    path = folder / "weights.safetensors"
    path.write_bytes(b"weights")
    write_manifest(folder, manifest_of(folder, weights=file_entry(path)))
    assert load_bundle(folder).weights() == path
    path.write_bytes(b"weighty")
    with pytest.raises(BundleError, match=r"weights\.safetensors: expected sha256"):
        load_bundle(folder).weights()
    path.unlink()
    bundle = load_bundle(folder)
    with pytest.raises(BundleError, match=r"expected weights\.safetensors, could not read it"):
        bundle.weights()


def test_class_entries_have_a_colour_each() -> None:
    entries = class_entries((f"type_{i}", f"Type {i}") for i in range(8))
    assert [entry.id for entry in entries] == [f"type_{i}" for i in range(8)]
    assert len({entry.colour for entry in entries}) == 8
    shipped_colours = [c.colour for c in load_bundle().classes]
    assert [entry.colour for entry in entries[:4]] == shipped_colours


def test_a_decision_in_the_bundle_is_given_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named, own = load_bundle(decision=Path("first-look")), load_bundle(decision=Path("decision"))
    assert named.decision.first_look is not None
    assert own.decision == load_bundle().decision
    # What is there comes first, and no name leads out of the folder.
    Path("first-look").write_text(own.decision.text + "# mine\n")
    assert load_bundle(decision=Path("first-look")).decision.text.endswith("# mine\n")
    (tmp_path / "bundle").symlink_to(DEFAULT_BUNDLE)
    for outside in ("../bundle/decision", "no-such"):
        with pytest.raises(InputError, match=f"expected a decision file at {outside}"):
            load_bundle(Path("bundle"), Path(outside))
