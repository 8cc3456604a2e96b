"""README and docs tell the truth: their commands and Python run, their links lead somewhere."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from steelsight import cli
from steelsight.data.formats.registry import FORMATS, load, recognise
from steelsight.data.synthetic import CoilConfig, write_severstal
from steelsight.decisions import load_decision
from steelsight.defects import Reason
from steelsight.masks import encode_rle

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def drawn_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    write_severstal(CoilConfig(frames=2, seed=1), folder / "two")
    (folder / "two" / "images").rename(folder / "frames")
    small = CoilConfig(frames=12, seed=5, faulty_share=0.7, size_wh=(320, 128))
    write_severstal(small, folder / "drawn")
    (folder / "frame.jpg").write_bytes((folder / "frames" / "synthetic-000000.jpg").read_bytes())
    return folder


@pytest.fixture(scope="module")
def stored(drawn_frames: Path) -> list[Path]:
    """A run's folder and a store of a coil, as the pages have them."""
    where, out = str(drawn_frames / "frames"), drawn_frames / "out"
    store = drawn_frames / "plant.db"
    of_coil = ["--store", str(store), "--coil", "17", "--mm-per-px", "0.5"]
    for options in (["--out", str(out)], ["--out", str(drawn_frames / "other"), *of_coil]):
        done = run_command(["inspect", where, *options], drawn_frames)
        assert done.returncode == cli.DONE, done.stderr
    return [out, store]


def run_command(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from steelsight.cli import main; main()", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_run(
    page: Path, drawn_frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(drawn_frames)
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), {"__name__": "example"})


def shell_commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return sorted({line.partition("#")[0].strip() for line in lines} - {""})


def test_there_are_commands_to_test() -> None:
    assert any(command.startswith("steelsight inspect") for command in shell_commands())


@pytest.mark.parametrize("command", shell_commands())
def test_shell_examples(
    command: str, drawn_frames: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if words[0] in {"git", "pip", "cd"}:
        pytest.skip("installs or fetches: nothing of ours to run")
    assert words[0] == "steelsight"
    if "../shared" in command:
        pytest.skip("the whole of ../shared takes minutes; tests/journeys run a part of it")
    # A quick run of the documented command, in a folder of its own beside the example frames.
    if words[1] == "demo":
        words += ["--frames", "2"]
    for name in ("frames", "frame.jpg", *([] if "synth" in words else ["drawn"])):
        (tmp_path / name).symlink_to(drawn_frames / name)
    if words[1] in ("results", "review", "replay"):
        for made in request.getfixturevalue("stored"):
            copy = shutil.copytree if made.is_dir() else shutil.copy2
            copy(made, tmp_path / made.name)
    if words[1] == "serve":
        serve_for_a_moment(words[1:], tmp_path)
        return
    done = run_command(words[1:], tmp_path)
    assert done.returncode == cli.DONE, done.stderr


def serve_for_a_moment(words: list[str], folder: Path) -> None:
    """Starts the documented service on a free port, waits until it serves, and ends it."""
    (folder / "token.txt").write_text("a-secret-for-this-test")
    (folder / "bundles").mkdir()
    words = [word for word in words if word != "--open"]
    command = [sys.executable, "-c", "from steelsight.cli import main; main()", *words]
    with subprocess.Popen(
        [*command, "--port", "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.terminate()
        assert process.wait(60) == cli.DONE, process.stderr.read()
        assert first.startswith("Serving ")


# ------------------------------------------------------------------------------- examples of labels

EXAMPLES = re.findall(
    r"```\w+ file=(\S+)\n(.*?)```", (ROOT / "docs" / "data.md").read_text("utf-8"), re.DOTALL
)
EXAMPLE_FORMATS = sorted({name.partition("/")[0] for name, _ in EXAMPLES})


@pytest.mark.parametrize("name", EXAMPLE_FORMATS)
def test_every_documented_label_file_says_the_same(name: str, tmp_path: Path) -> None:
    """Each describes the scratch that is drawn on the page, and a clean frame."""
    rows = re.findall("^[.#]{6}$", (ROOT / "docs" / "data.md").read_text("utf-8"), re.MULTILINE)
    mask = np.array([[cell == "#" for cell in row] for row in rows])
    folder = tmp_path / name
    for path, text in EXAMPLES:
        if path.startswith(f"{name}/"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text, encoding="utf-8")
    if name == "yolo":
        (folder / "labels" / "b.txt").write_text("")
    (folder / "images").mkdir()
    for image in ("a.png", "b.png"):
        cv2.imwrite(str(folder / "images" / image), np.zeros(mask.shape, np.uint8))
    assert recognise(folder).name == {
        "severstal-submission": "severstal",
        "coco-polygons": "coco",
    }.get(name, name)
    label_set = load(folder)
    assert dict(label_set.frames["a.png"].rle_by_class) == {"scratch": encode_rle(mask)}
    assert label_set.frames["b.png"].clean
    assert len(label_set.frames) == 2


def test_every_format_is_documented() -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert [name for name in FORMATS if f"`{name}`" not in text] == []
    assert set(EXAMPLE_FORMATS) <= set(FORMATS)
    # The others have no text file to show: pictures, or folders of pictures.
    assert set(FORMATS) - set(EXAMPLE_FORMATS) == {
        *("mask-index", "mask-palette", "mask-binary", "mvtec", "images"),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_every_reason_is_documented() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert [reason for reason in Reason if f"`{reason}`" not in text] == []


def test_the_documented_decision_file_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "decision.toml"
    path.write_text(blocks(ROOT / "docs" / "decisions.md", "toml")[0], encoding="utf-8")
    assert load_decision(path, list("1234")).gate.ng_from == pytest.approx(0.41886456)
