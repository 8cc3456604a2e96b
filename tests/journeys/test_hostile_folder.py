"""One folder with everything that goes wrong in a plant and on an attacker's mind, inspected once.

No crash, nothing lost, nothing damaged called OK, and every output still readable.
"""

import csv
import html.parser
import io
import json
import os
import struct
import subprocess
import sys
import sysconfig
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from steelsight.data.synthetic import CoilConfig, draw_frame, encode_jpeg

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names with any bytes are Linux's")

STEELSIGHT = str(Path(sysconfig.get_path("scripts")) / "steelsight")
JUDGED = ("OK", "NG")


def drawn(index: int = 0, size_wh: tuple[int, int] = (1600, 256)) -> np.ndarray:
    config = CoilConfig(frames=9, seed=11, faulty_share=1.0, size_wh=size_wh)
    return draw_frame(config, index).grey_hw


def saved(picture: np.ndarray | Image.Image, fmt: str, **options: Any) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def flipped(data: bytes, bits: int, seed: int) -> bytes:
    """Random bits of the compressed picture, behind the headers, are turned over."""
    damaged = bytearray(data)
    rng = np.random.default_rng(seed)
    for bit in rng.choice(np.arange(8 * 700, 8 * (len(data) - 2)), bits, replace=False).tolist():
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def bomb() -> bytes:
    """A valid PNG of 20,000 x 20,000 black pixels in some 50 kB."""

    def chunk(kind: bytes, payload: bytes) -> bytes:
        return (
            struct.pack(">I", len(payload))
            + kind
            + payload
            + struct.pack(">I", zlib.crc32(kind + payload))
        )

    lines = zlib.compress(bytes(20_000 * (1 + 20_000 // 8)), 1)
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    )


def damaged_files() -> dict[str, tuple[bytes, str]]:
    """Content and expected reason by name."""
    jpeg = encode_jpeg(drawn())
    middle = len(jpeg) // 2
    rgb = np.repeat(drawn()[:, :, None], 3, axis=2)
    tinted = rgb.copy()
    tinted[..., 0] = np.clip(tinted[..., 0].astype(int) + 40, 0, 255)
    pages = [Image.fromarray(drawn(i, (320, 128))) for i in (0, 1)]
    several = {"save_all": True, "append_images": pages[1:]}
    return {
        "cut in half.jpg": (jpeg[:middle], "truncated"),
        "zeros in the middle.jpg": (
            jpeg[:middle] + bytes(4096) + jpeg[middle + 4096 :],
            "decode-failed",
        ),
        **{
            f"64 bits flipped {seed}.jpg": (flipped(jpeg, 64, seed), "decode-failed")
            for seed in range(4)
        },
        "one bit flipped.png": (flipped(saved(drawn(), "PNG"), 1, 0), "decode-failed"),
        "png inside.jpg": (saved(drawn(), "PNG"), "wrong-extension"),
        "0 bytes.jpg": (b"", "empty"),
        "zeros.jpg": (bytes(70_000), "not-an-image"),
        "notes.txt": (
            b"BM: the coil of Monday was replaced by the one of Tuesday\n",
            "not-an-image",
        ),
        "text.jpg": (b"<html>404 not found</html>", "not-an-image"),
        "huge.png": (bomb(), "too-large"),
        "12 bits in 16.png": (saved(drawn().astype(np.uint16) << 4, "PNG"), "unsupported-pixels"),
        "animated.png": (saved(pages[0], "PNG", **several), "multiple-frames"),
        "animated.webp": (saved(pages[0], "WEBP", **several), "multiple-frames"),
        "animated.gif": (saved(pages[0], "GIF", **several), "unsupported-format"),
        "pages.tif": (saved(pages[0], "TIFF", **several), "multiple-frames"),
        "cut.tif": (saved(pages[0], "TIFF")[:-9], "truncated"),
        "cut.bmp": (saved(pages[0], "BMP")[:-900], "truncated"),
        "cut.webp": (saved(pages[0], "WEBP")[:-900], "truncated"),
        "cmyk.jpg": (saved(Image.fromarray(rgb).convert("CMYK"), "JPEG"), "unsupported-pixels"),
        "transparent.png": (
            saved(np.dstack([rgb, np.full(rgb.shape[:2], 90, np.uint8)]), "PNG"),
            "unsupported-pixels",
        ),
        "black.jpg": (encode_jpeg(np.zeros((256, 1600), np.uint8)), "blank"),
        "coloured.png": (saved(tinted, "PNG"), "coloured"),
        "tiny.png": (saved(drawn()[:32, :32], "PNG"), "wrong-size"),
        "=bad().jpg": (jpeg[:middle], "truncated"),
        "-bad.jpg": (b"", "empty"),
        "<img src=x onerror=alert(2)>.jpg": (b"", "empty"),
        'quo"ted, and;separated.jpg': (b"", "empty"),
    }


def good_files() -> dict[str, tuple[bytes, str | None]]:
    """Content by name on disk; with the name in the results where it is another."""
    jpeg = encode_jpeg(drawn(2, (320, 128)))
    return {
        "good 1.jpg": (encode_jpeg(drawn(0)), None),
        "good 2.jpg": (encode_jpeg(drawn(1)), None),
        "8 bits.png": (saved(drawn(1), "PNG"), None),
        "16 bits.png": (saved(drawn(1).astype(np.uint16) * 257, "PNG"), None),
        "two  spaces.jpg": (jpeg, None),
        'it\'s "quoted".jpg': (jpeg, None),
        "<script>alert(1)</script>.jpg": (jpeg, None),
        "🙂 鋼.jpg": (jpeg, None),
        "=cmd().jpg": (jpeg, None),
        "new\nline.jpg": (jpeg, "new%0Aline.jpg"),
        "latin-\udce9.jpg": (jpeg, "latin-%E9.jpg"),
        "back\\slash.jpg": (jpeg, "back%5Cslash.jpg"),
        "turned \u202egpj.exe.jpg": (jpeg, "turned%20%E2%80%AEgpj.exe.jpg"),
        "n" * 251 + ".jpg": (jpeg, None),
        "x.jpg/inside.jpg": (jpeg, None),
        "no suffix": (jpeg, None),
        "UPPER.JPG": (jpeg, None),
    }


@dataclass(frozen=True)
class Run:
    out: Path
    code: int
    summary: dict[str, Any]
    err: str
    lines: dict[str, dict[str, Any]]
    reasons: dict[str, str]
    """Expected reason of everything damaged, by name in the results."""
    good: frozenset[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    place = tmp_path_factory.mktemp("hostile")
    folder = place / "frames"
    reasons, good = {}, set()
    for name, (content, reason) in damaged_files().items():
        reasons[name] = reason
        write(folder / name, content)
    for name, (content, shown) in good_files().items():
        good.add(shown or name)
        write(folder / name, content)
    reasons["x.jpg"] = "not-a-file"  # the folder around inside.jpg
    write(place / "elsewhere" / "good.jpg", encode_jpeg(drawn()))
    (folder / "link to folder").symlink_to(place / "elsewhere")
    (folder / "link to itself.jpg").symlink_to(folder)
    (folder / "dangling.jpg").symlink_to(place / "nothing")
    os.mkfifo(folder / "pipe.jpg")
    reasons |= dict.fromkeys(("link to folder", "link to itself.jpg", "pipe.jpg"), "not-a-file")
    reasons["dangling.jpg"] = "unreadable"
    write(folder / ".hidden.jpg", b"left out on purpose")
    done = subprocess.run(
        [STEELSIGHT, "inspect", "frames", "--out", "out", "--json"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (0, 3), done.stderr
    out = place / "out"
    text = (out / "results.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    by_name = {line["image"]: line for line in lines}
    assert len(by_name) == len(lines)
    return Run(
        out,
        done.returncode,
        json.loads(done.stdout),
        done.stderr,
        by_name,
        reasons,
        frozenset(good),
    )


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


def test_everything_has_one_line_and_the_counts_add_up(run):
    assert run.lines.keys() == run.reasons.keys() | run.good
    verdicts = [line["verdict"] for line in run.lines.values()]
    assert run.code == 3
    assert run.summary["found"] == run.summary["seen"] == len(run.lines)
    assert run.summary["unknown"] == verdicts.count("UNKNOWN") == len(run.reasons)
    assert run.summary["ok"] == verdicts.count("OK")
    assert run.summary["ng"] == verdicts.count("NG")
    assert "Traceback" not in run.err


EXPECTED = {name: reason for name, (_, reason) in damaged_files().items()} | {
    "x.jpg": "not-a-file",
    "link to folder": "not-a-file",
    "link to itself.jpg": "not-a-file",
    "pipe.jpg": "not-a-file",
    "dangling.jpg": "unreadable",
}


@pytest.mark.parametrize(("name", "reason"), EXPECTED.items(), ids=ascii)
def test_what_is_damaged_is_unknown_for_the_right_reason(run, name, reason):
    line = run.lines[name]
    assert (line["verdict"], line["reason"]) == ("UNKNOWN", reason)
    assert line["detail"]
    assert "\n" not in line["detail"]
    assert line["defects"] == []
    assert (line["sha256"] is None) == (reason in ("not-a-file", "unreadable"))


def test_the_good_ones_are_judged_whatever_their_name(run):
    assert {run.lines[name]["verdict"] for name in run.good} <= set(JUDGED)
    same = [line for name, line in run.lines.items() if name in run.good and "bits" not in name]
    alike = [line for line in same if line["size_wh"] == [320, 128]]
    assert len(alike) == 13
    assert len({(line["verdict"], line["faulty_probability"]) for line in alike}) == 1


def test_16_bits_are_judged_as_8_bits(run):
    eight, sixteen = run.lines["8 bits.png"], run.lines["16 bits.png"]
    for key in ("verdict", "faulty_probability", "class_probabilities", "defects", "size_wh"):
        assert eight[key] == sixteen[key]
    assert sixteen["notes"] == ["16-bit pixels scaled to 8 bits"]


def test_the_tables_hold_everything_and_no_formula(run):
    quarantine = rows(run.out / "quarantine.csv")
    assert quarantine[0] == ["image", "reason", "detail", "sha256"]
    found = {row[0]: row[1] for row in quarantine[1:]}
    assert len(found) == len(quarantine) - 1
    assert found == {guarded(name): reason for name, reason in run.reasons.items()}
    submission = rows(run.out / "submission.csv")
    assert submission[0] == ["ImageId_ClassId", "EncodedPixels"]
    assert {row[0] for row in submission[1:]} == {
        f"{guarded(name)}_{k}" for name in run.good for k in "1234"
    }
    for row in quarantine + submission:
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row)


def guarded(name: str) -> str:
    return f"'{name}" if name.startswith(("=", "-")) else name


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_shows_names_and_runs_none_of_them(run):
    page = _Page()
    page.feed((run.out / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "iframe", "object", "embed", "link", "base"} & set(page.tags)
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    links = [value for key, value in page.attributes if key in ("href", "src")]
    assert all(link.startswith(("#", "./", "data:image/")) for link in links)
    assert not [link for key, link in page.attributes if key == "src" and link == "x"]
    text = "".join(page.text)
    for name in ("<img src=x onerror=alert(2)>.jpg", 'quo"ted, and;separated.jpg', "=bad().jpg"):
        assert name in text
    assert f"{len(run.lines)} frames" in text
    assert "\u202e" not in text
    judged_by_truth = f"= {len(run.lines)}."
    assert judged_by_truth in text


def test_overlays_have_harmless_names(run):
    overlays = sorted((run.out / "overlays").iterdir())
    assert len(overlays) == run.summary["ng"] > 0
    assert all(set(path.name) <= set("".join(map(chr, range(33, 127)))) for path in overlays)
    assert not any(set(path.name) & set("<>'\"=%\\ ") for path in overlays)
    assert sorted(path.name for path in run.out.iterdir()) == [
        ".lock",
        "overlays",
        "quarantine.csv",
        "report.html",
        "results.jsonl",
        "run.json",
        "store.db",
        "store.db.lock",
        "submission.csv",
    ]
