"""The command line as people and scripts meet it: exit codes, one line per mistake, no traces."""

import csv
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

import pytest

import steelsight
from steelsight import cli
from steelsight.bundle import DEFAULT_BUNDLE, load_bundle
from steelsight.cli.terminal import fail
from steelsight.data.synthetic import CoilConfig, write_severstal

# main() leaves it to cyclopts to read sys.argv, as the installed command does.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")


class Answer(NamedTuple):
    code: int
    out: str
    err: str


STEELSIGHT = str(Path(sysconfig.get_path("scripts")) / "steelsight")
linux = pytest.mark.skipif(sys.platform != "linux", reason="names with any bytes are Linux's")


def start(*arguments: object, **options) -> subprocess.Popen:
    """The installed command in a process of its own; a hang is ended by pytest's timeout."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([STEELSIGHT, *map(str, arguments)], **options)


def run(*arguments: object, **options) -> Answer:
    with start(*arguments, **options) as process:
        out, err = process.communicate(timeout=120)
    return Answer(process.returncode, out, err)


def commands() -> list[str]:
    found = []
    for name in cli.app:
        if not name.startswith("-"):
            below = [f"{name} {n}" for n in cli.app[name] if not n.startswith("-")]
            found += below or [name]
    return sorted(found)


COMMANDS = [
    "benchmark",
    "calibrate",
    "compare",
    "data audit-labels",
    "data check",
    "data convert",
    "data explore",
    "data split",
    "data synth",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "inspect",
    "model convert-weights",
    "model first-look",
    "model info",
    "replay",
    "results",
    "review",
    "serve",
    "train",
]


def results(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Four small drawn frames, so that the network costs next to nothing."""
    config = CoilConfig(frames=4, seed=5, faulty_share=0.7, size_wh=(320, 128))
    return write_severstal(config, tmp_path_factory.mktemp("drawn") / "coil")


@pytest.fixture
def frames(drawn) -> Path:
    return drawn / "images"


@pytest.fixture
def mixed(frames, tmp_path) -> Path:
    """The four frames and a damaged one."""
    folder = shutil.copytree(frames, tmp_path / "mixed")
    whole = (folder / "synthetic-000001.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


# ------------------------------------------------------------------------------------------- help


def test_every_command_is_tested_here():
    assert commands() == COMMANDS


@pytest.mark.parametrize("name", cli.LAZY)
def test_what_the_first_page_says_of_a_command_is_what_it_says_itself(name):
    """It is written down twice, so that the page needs no import of the commands."""
    itself = cli.app[name]
    own = itself.default_command.__doc__ if itself.default_command else itself.help
    assert cli.LAZY[name][1] == " ".join(own.split("\n\n")[0].split())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help_with_an_example(call, command):
    answer = call(*command.split(), "--help")
    assert answer.code == 0
    assert answer.err == ""
    assert f"Usage: steelsight {command}".strip() in answer.out
    own = re.findall(r"(?<=Example: )steelsight .*", answer.out) if command else ["steelsight"]
    assert len(own) == 1
    assert own[0].startswith(f"steelsight {command}".strip())
    assert "Exit codes: 0 done, 1 error, 2 usage" in answer.out


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_valid_command_lines(command):
    """An example with an option that was renamed would be worse than none."""
    described = cli.app
    for name in command.split():
        described = described[name]
    (example,) = re.findall(r"Example: (steelsight .*)", described.default_command.__doc__)
    if example.endswith("..."):
        pytest.skip("an example that is cut short on purpose")
    function, bound, _ = cli.app.parse_args(
        shlex.split(example)[1:], exit_on_error=False, print_error=False
    )
    assert function is described.default_command
    assert bound.arguments or command == "doctor"


def test_version(call):
    assert call("--version") == Answer(0, f"{steelsight.__version__}\n", "")


def test_help_comes_at_once():
    """Processor time, the best of five: other processes on the machine must not matter.

    On a slow hour of a machine that others use, twice the bare parser and console are allowed.
    """

    def best_of_five(words):
        took = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run([sys.executable, *words], capture_output=True, timeout=60)
            assert done.returncode == 0
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(took)

    bare = best_of_five(["-c", "import cyclopts, rich.console, rich.panel, rich.table"])
    assert best_of_five(["-m", "steelsight", "--help"]) < max(0.3, 2 * bare)


def test_help_imports_nothing_heavy():
    code = (
        "import sys, steelsight.cli as cli; sys.argv = ['steelsight', 'inspect', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'cv2', 'onnxruntime', 'pydantic', 'PIL', 'torch', 'jinja2'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("frobnicate", "frobnicate"),
        ("inspect", "PATH"),
        ("inspect --json", "PATH"),
        ("inspect x --frobnicate", "--frobnicate"),
        ("inspect x --threads many", "--threads"),
        ("inspect x --out", "--out"),
        ("inspect x --bit-depth twelve", "--bit-depth"),
        ("data frobnicate", "frobnicate"),
        ("data synth", "--out"),
        ("data synth --out x --frames few", "--frames"),
        ("demo x", "x"),
        ("doctor x y", "y"),
        ("model info --bundle", "--bundle"),
        ("export", "WEIGHTS"),
        ("export x", "--frames"),
        ("--frobnicate", "--frobnicate"),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(call, arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = call(*arguments.split())
    assert answer.code == 2
    assert answer.out == ""
    assert_one_line(answer.err, told)
    assert "steelsight --help" in answer.err
    assert list(tmp_path.iterdir()) == []


def assert_one_line(err: str, *told: str) -> None:
    assert err.startswith("steelsight: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for part in told:
        assert part in err


@pytest.fixture
def place(tmp_path, monkeypatch, frames) -> Path:
    """A current folder with everything that somebody can get wrong."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frames").symlink_to(frames)
    (tmp_path / "frame.jpg").symlink_to(frames / "synthetic-000000.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "results.jsonl").write_text("")
    (tmp_path / "wrong.csv").write_text("ImageId,ClassId,EncodedPixels\na.jpg,7,1 1\n")
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("inspect nothing.jpg", ["nothing.jpg", "does not exist"]),
        ("inspect frames nothing.jpg", ["nothing.jpg", "does not exist"]),
        ("inspect empty", ["empty", "found no file"]),
        ("inspect frame.jpg --engine tpu", ["auto, onnxruntime, openvino, cuda", "tpu"]),
        ("inspect frame.jpg --bundle nothing", ["nothing", "bundle"]),
        ("inspect frame.jpg --bundle empty", ["empty", "manifest.toml"]),
        ("inspect frame.jpg --bundle file", ["file", "manifest.toml"]),
        ("inspect frame.jpg --decision nothing.toml", ["nothing.toml", "No such file"]),
        ("inspect frame.jpg --decision empty", ["empty", "directory"]),
        ("inspect frame.jpg --out earlier", ["earlier", "--overwrite"]),
        ("inspect frame.jpg --out file", ["file", "--out"]),
        ("inspect frame.jpg --out file/below", ["below", "--out"]),
        ("inspect frame.jpg --truth wrong.csv", ["--truth", "--out"]),
        ("inspect frame.jpg --overwrite", ["--overwrite", "--out"]),
        ("inspect frame.jpg --out new --truth nothing.csv", ["nothing.csv"]),
        ("inspect frame.jpg --out new --truth wrong.csv", ["wrong.csv row 2", "a.jpg", "'7'"]),
        ("inspect frame.jpg --out new --truth columns.csv", ["columns.csv row 1", "ImageId"]),
        ("inspect frame.jpg --threads 0", ["at least 1 thread", "0"]),
        ("inspect frame.jpg --bit-depth 3", ["8..16", "3"]),
        ("model info --bundle empty", ["empty", "manifest.toml"]),
        ("demo --engine tpu --out new", ["tpu"]),
        ("demo --frames 0 --out new", ["frames", "0"]),
        ("demo --seed -1 --out new", ["seed", "-1"]),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_mistakes_are_one_line_and_exit_code_1(call, place, arguments, told):
    answer = call(*arguments.split())
    assert answer.code == 1
    assert answer.out == ""
    assert_one_line(answer.err, *told)
    assert not (place / "new").exists()


def test_an_export_in_an_unknown_precision(call, place):
    pytest.importorskip("torch")
    needed = ["frames", "truth", "decision", "card", "self-test", "name", "trained-on", "terms"]
    options = [text for name in needed for text in (f"--{name}", "file")]
    answer = call("export", "file", "--out", "new", *options, "--precision", "int4")
    assert answer.code == 1
    assert_one_line(answer.err, "int8", "int4")
    assert not (place / "new").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("version = 2", "version"),
        ("this is no TOML", "TOML"),
        (lambda text: text.replace("[types.4]", "[types.5]"), "types 1, 2, 3, 4"),
    ],
    ids=["version", "no TOML", "types"],
)
def test_a_wrong_decision_file_is_named(call, place, content, told):
    path = place / "mine.toml"
    if callable(content):
        content = content((DEFAULT_BUNDLE / "decision.toml").read_text(encoding="utf-8"))
    path.write_text(content, encoding="utf-8")
    answer = call("inspect", "frame.jpg", "--decision", "mine.toml")
    assert answer.code == 1
    assert_one_line(answer.err, "mine.toml", told)


@pytest.fixture
def bundle_copy(tmp_path) -> Path:
    """The shipped bundle, its files linked; what a test alters is written anew."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in DEFAULT_BUNDLE.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def replace_file(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("gate.int8.onnx", lambda data: data[:-1], "gate.int8.onnx: expected sha256"),
        ("segmenter.int8.onnx", None, "expected segmenter.int8.onnx"),
        ("manifest.toml", lambda data: data.replace(b"format = 2", b"format = 3"), "format"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bundle_that_was_altered_is_refused(call, bundle_copy, place, name, change, told):
    path = bundle_copy / name
    if change is None:
        path.unlink()
    else:
        data = path.read_bytes()
        assert change(data) != data
        replace_file(path, change(data))
    answer = call("inspect", "frame.jpg", "--bundle", bundle_copy)
    assert answer.code == 1
    assert answer.out == ""
    assert_one_line(answer.err, told)


@pytest.mark.parametrize(
    "name",
    [
        "new\nline",
        "x" * 300,
        "[a].jpg",
        "b[red].jpg",
        "emoji 🙂",
        "clear \x1b[2J the screen",
    ],
    ids=ascii,
)
def test_strange_names_in_messages(call, place, name):
    answer = call("inspect", name)
    assert answer.code == 1
    assert_one_line(answer.err, "does not exist")
    assert answer.err.rstrip("\n").isprintable()


def test_a_line_without_end_is_cut_before_what_to_do(capsys):
    assert fail(f"{'x' * 10**6} is wrong; correct it", 1) == 1
    line = capsys.readouterr().err
    assert len(line) < 3100
    assert line.startswith("steelsight: xxx")
    assert line.endswith("x is wrong; correct it\n")


# ----------------------------------------------------------------------------------------- inspect


def test_without_out_there_are_only_result_lines(call, mixed):
    answer = call("inspect", mixed)
    assert answer.code == 3
    assert answer.err == ""
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert [line["image"] for line in lines] == [
        "cut.jpg",
        *(f"synthetic-{i:06d}.jpg" for i in range(4)),
    ]
    assert [line["reason"] for line in lines if line["verdict"] == "UNKNOWN"] == ["truncated"]
    assert list(mixed.parent.iterdir()) == [mixed]


def test_one_good_file(call, frames):
    for more in ([], ["--json"]):
        answer = call("inspect", frames / "synthetic-000000.jpg", *more)
        assert (answer.code, answer.err) == (0, "")
        (line,) = answer.out.splitlines()
        assert json.loads(line)["verdict"] in ("OK", "NG")


def test_json_prints_one_object(call, mixed, tmp_path):
    out = tmp_path / "out"
    answer = call("inspect", mixed, "--out", out, "--json")
    assert answer.code == 3
    (line,) = answer.out.splitlines()
    summary = json.loads(line)
    assert summary["folder"] == str(out)
    assert (summary["found"], summary["seen"], summary["unknown"]) == (5, 5, 1)
    assert summary["seen"] == summary["ok"] + summary["ng"] + summary["unknown"]
    assert summary["interrupted"] is False
    verdicts = [r["verdict"] for r in results(out / "results.jsonl")]
    assert [verdicts.count(v) for v in ("OK", "NG", "UNKNOWN")] == [
        summary["ok"],
        summary["ng"],
        summary["unknown"],
    ]


def test_a_run_for_people(call, drawn, frames, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = call("inspect", frames, "--out", "out", "--truth", drawn / "train.csv")
    assert answer.code == 0
    told = " ".join(answer.out.split())
    sums = re.search(r"Every frame has a verdict: (\d) \+ (\d) \+ 0 = 4\.", told)
    assert sums
    assert int(sums[1]) + int(sums[2]) == 4
    assert "Against the truth: of" in told
    assert "Open out/report.html in a browser." in told
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "steelsight inspect" in page
    assert "severstal-2-percent" in page
    assert 'id="truth"' in page
    ng = [r for r in results(tmp_path / "out" / "results.jsonl") if r["verdict"] == "NG"]
    assert len(list((tmp_path / "out" / "overlays").glob("*.jpg"))) == len(ng) > 0
    # The next run in the same folder does not see the results of this one.
    (tmp_path / "two").mkdir()
    again = call("inspect", frames, "--out", "out", "--overwrite", "--no-overlays", "--json")
    assert json.loads(again.out)["seen"] == 4
    assert not (tmp_path / "out" / "overlays").exists()


@pytest.mark.parametrize("workers", [0, 3])
def test_frames_in_work_at_once_change_no_line(call, mixed, workers):
    one, many = (
        [json.loads(line) for line in call("inspect", mixed, "--workers", n).out.splitlines()]
        for n in (1, workers)
    )
    for line in (*one, *many):
        del line["milliseconds"]
    assert len(one) == 5
    assert many == one


def test_workers_below_none_are_refused(call, frames):
    answer = call("inspect", frames, "--workers", "-1")
    assert answer.code == 1
    assert answer.err == (
        "steelsight: expected at least 1 worker, got -1; 0 is one for each thread\n"
    )


def test_a_run_inside_the_inspected_folder(call, mixed):
    first = call("inspect", mixed, "--out", mixed / "out", "--json")
    again = call("inspect", mixed, "--out", mixed / "out", "--json", "--overwrite")
    assert json.loads(first.out)["seen"] == json.loads(again.out)["seen"] == 5


def test_a_run_into_the_inspected_folder_itself(call, mixed):
    before = {path.name for path in mixed.iterdir()}
    answer = call("inspect", mixed, "--out", mixed, "--json")
    assert answer.code == 1
    assert_one_line(answer.err, "--out")
    assert {path.name for path in mixed.iterdir()} == before


def test_another_decision_file_decides(call, frames, tmp_path):
    text = (DEFAULT_BUNDLE / "decision.toml").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^clear_below = \S+", "clear_below = 0.999999999", text)
    text = re.sub(r"(?m)^ng_from = \S+", "ng_from = 0.9999999999", text)
    decision = tmp_path / "lenient.toml"
    decision.write_text(text, encoding="utf-8")
    by_default, by_mine = (
        [json.loads(line) for line in call("inspect", frames, *more).out.splitlines()]
        for more in ([], ["--decision", decision])
    )
    assert "NG" in {line["verdict"] for line in by_default}
    assert {line["verdict"] for line in by_mine} == {"OK"}
    assert {line["decision"] for line in by_default} != {line["decision"] for line in by_mine}
    for a, b in zip(by_default, by_mine, strict=True):
        assert a["model"] == b["model"]
        assert a["faulty_probability"] == b["faulty_probability"]


def test_both_engines_agree(call, frames):
    pytest.importorskip("openvino")
    ours, theirs = (
        [json.loads(line) for line in call("inspect", frames, "--engine", e).out.splitlines()]
        for e in ("onnxruntime", "openvino")
    )
    assert {line["engine"] for line in ours} == {"onnxruntime-int8"}
    assert {line["engine"] for line in theirs} == {"openvino-int8"}
    assert [line["verdict"] for line in ours] == [line["verdict"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a["faulty_probability"] == pytest.approx(b["faulty_probability"], abs=0.1)


@pytest.mark.parametrize(
    "out",
    [
        "plain",
        "line[red]",
        "[/x]",
        "l" + "o" * 90 + "ng",
    ],
    ids=lambda out: out[:10],
)
def test_the_path_of_the_report_can_be_copied(call, place, out):
    answer = call("inspect", "frame.jpg", "--out", out)
    assert answer.code == 0
    assert f"{out}/report.html" in answer.out


@linux
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--json"],
    ],
    ids=["text", "json"],
)
def test_an_output_folder_with_bytes_that_are_no_text(frames, tmp_path, more):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    answer = run("inspect", frames / "synthetic-000000.jpg", "--out", out, *more, env=environment)
    assert answer.code == 0
    assert "Traceback" not in answer.err
    assert (Path(out) / "report.html").is_file()


# ------------------------------------------------------------------------------ pipes and signals


def test_a_closed_pipe_ends_quietly(frames, tmp_path):
    for number in range(30):
        (tmp_path / f"{number}.jpg").hardlink_to(frames / "synthetic-000000.jpg")
    with start("inspect", tmp_path) as process:
        assert json.loads(process.stdout.readline())["image"] == "0.jpg"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) != 0


@linux
def test_a_full_disk_is_one_line(frames):
    with Path("/dev/full").open("w") as full:
        answer = run("inspect", frames / "synthetic-000000.jpg", stdout=full)
    assert answer.code == 1
    assert_one_line(answer.err, "No space left")


@pytest.fixture
def long_coil(tmp_path) -> Path:
    """Far more full-size frames than a test would wait for."""
    config = CoilConfig(frames=2, seed=3, faulty_share=1.0)
    first, second = sorted((write_severstal(config, tmp_path / "two") / "images").iterdir())
    folder = tmp_path / "long"
    folder.mkdir()
    for number in range(0, 1000, 2):
        (folder / f"{number:03d}.jpg").hardlink_to(first)
        (folder / f"{number + 1:03d}.jpg").hardlink_to(second)
    (folder / "001a.jpg").write_bytes(first.read_bytes()[:5000])
    return folder


def wait_for_lines(path: Path, count: int) -> None:
    deadline = time.monotonic() + 100
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, "no results came"
        time.sleep(0.02)


def test_ctrl_c_leaves_a_complete_run_of_what_was_seen(long_coil, tmp_path):
    out = tmp_path / "out"
    with start("inspect", long_coil, "--out", out) as process:
        wait_for_lines(out / "results.jsonl", 4)
        process.send_signal(signal.SIGINT)
        told, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    lines = results(out / "results.jsonl")
    assert 4 <= len(lines) < 1001
    assert [line["image"] for line in lines] == sorted(p.name for p in long_coil.iterdir())[
        : len(lines)
    ]
    judged = [line for line in lines if line["verdict"] != "UNKNOWN"]
    unknown = [line for line in lines if line["verdict"] == "UNKNOWN"]
    assert [line["image"] for line in unknown] == ["001a.jpg"]
    assert [row[0] for row in rows(out / "submission.csv")[1:]] == [
        f"{line['image']}_{k}" for line in judged for k in "1234"
    ]
    assert [row[0] for row in rows(out / "quarantine.csv")[1:]] == ["001a.jpg"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "STOPPED EARLY" in page
    assert f"{1001 - len(lines)} of 1,001 frames found were not inspected" in page
    ng = sum(line["verdict"] == "NG" for line in lines)
    assert len(list((out / "overlays").glob("*"))) == ng
    told = " ".join(told.split())
    assert f"Stopped: {1001 - len(lines)} of 1001 frames not inspected" in told
    assert f"{len(judged) - ng} + {ng} + 1 = {len(lines)}" in told


def test_ctrl_c_without_out_ends_after_a_whole_line(long_coil):
    with start("inspect", long_coil) as process:
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "steelsight: stopped; what was finished until then is complete\n"
    assert rest.endswith("\n") or not rest
    lines = [json.loads(line) for line in (first + rest).splitlines()]
    assert 1 <= len(lines) < 100


# ------------------------------------------------------------------------- data, model info, doctor


def test_a_first_look_is_put_before_a_bundle(call, tmp_path):
    out = tmp_path / "both"
    plain = tmp_path / "plain.toml"
    plain.write_text(re.sub(r"\[first_look\][^\[]*", "", load_bundle().decision.text))
    shipped = "severstal-r50"
    answer = call("model", "first-look", shipped, shipped, "--out", out, "--decision", plain)
    assert answer.code == 0, answer.err
    made = load_bundle(out)
    assert answer.out.startswith(f"{made.id} in {out}")
    assert "nothing is cleared by it" in answer.out
    assert made.decision.first_look is None
    again = call("model", "first-look", shipped, shipped, "--out", out)
    assert (again.code, again.out) == (1, "")
    assert (
        again.err == f"steelsight: expected a new or empty folder, got {out}; give another --out\n"
    )
    rules = tmp_path / "rules.toml"
    rules.write_text(f"{plain.read_text()}\n[first_look]\nclear_below = 0.01\n")
    used = tmp_path / "used"
    answer = call("model", "first-look", out, shipped, "--out", used, "--decision", rules, "--json")
    assert json.loads(answer.out) == {
        "model": load_bundle(used).id,
        "folder": str(used),
        "used": True,
    }


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_data_synth_draws_the_same_frames_again(call, tmp_path):
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        answer = call("data", "synth", "--out", tmp_path / name, "--frames", 3, "--seed", seed)
        assert answer.code == 0
        assert "3 drawn frames" in " ".join(answer.out.split())
    a, b, c = (content(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert a["images/synthetic-000000.jpg"] != c["images/synthetic-000000.jpg"]
    assert set(a) == {
        "SYNTHETIC.txt",
        "images.csv",
        "train.csv",
        *(f"images/synthetic-{i:06d}.jpg" for i in range(3)),
    }


def test_data_synth_in_json_and_without_faults(call, tmp_path):
    out = tmp_path / "clean"
    answer = call("data", "synth", "--out", out, "--frames", 2, "--faulty-share", 0, "--json")
    assert json.loads(answer.out) == {
        "folder": str(out),
        "frames": 2,
        "seed": 0,
        "synthetic": True,
    }
    assert (out / "train.csv").read_text() == "ImageId,ClassId,EncodedPixels\n"


def test_data_synth_refuses_a_folder_with_files(call, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    answer = call("data", "synth", "--out", tmp_path, "--frames", 2)
    assert answer.code == 1
    assert_one_line(answer.err.splitlines(keepends=True)[-1], str(tmp_path), "empty folder")
    assert content(tmp_path) == {"mine.txt": b"x"}


@pytest.mark.parametrize("share", ["-0.1", "1.1", "nan"])
def test_data_synth_refuses_an_impossible_share(call, tmp_path, share):
    answer = call("data", "synth", "--out", tmp_path / "x", f"--faulty-share={share}")
    assert answer.code == 1
    assert_one_line(answer.err, "faulty_share")


def test_model_info_says_what_the_bundle_is(call):
    answer = call("model", "info")
    assert (answer.code, answer.err) == (0, "")
    told = " ".join(answer.out.split())
    for part in ("severstal-r50@", "int8", "Trained on:", "Terms:", "Type 4", "Frame: cleared"):
        assert part in told
    facts = json.loads(call("model", "info", "--json").out)
    assert facts["model"] in told
    assert facts["parity"]["passed"] is True
    assert [c["id"] for c in facts["manifest"]["classes"]] == list("1234")
    assert facts["decision"]["gate"]["clear_below"] < facts["decision"]["gate"]["ng_from"]


def test_doctor_finds_this_installation_healthy(call):
    answer = call("doctor", "--json")
    assert (answer.code, answer.err) == (0, "")
    report = json.loads(answer.out)
    assert report["healthy"] is True
    tested = [c["what"] for c in report["checks"] if c["ok"]]
    assert "bundle" in tested
    assert "self-test on onnxruntime" in tested
    assert {c["what"] for c in report["checks"]} >= {"steelsight", "python", "machine", "numpy"}


def test_doctor_refuses_a_broken_bundle(call, bundle_copy):
    (bundle_copy / "gate.int8.onnx").unlink()
    answer = call("doctor", "--bundle", bundle_copy)
    assert answer.code == 4
    told = " ".join(answer.out.split())
    assert "FAILED" in told
    assert "Do not trust results from this machine" in told
    assert json.loads(call("doctor", "--bundle", bundle_copy, "--json").out)["healthy"] is False


def test_labels_of_other_frames_do_not_cost_the_earlier_run(call, frames, tmp_path):
    out = tmp_path / "out"
    assert call("inspect", frames, "--out", out).code in (0, 3)
    before = (out / "results.jsonl").read_bytes()
    truth = tmp_path / "train.csv"
    truth.write_text("ImageId,ClassId,EncodedPixels\nelsewhere.jpg,1,1 1\n")
    answer = call("inspect", frames, "--out", out, "--overwrite", "--truth", truth)
    assert answer.code == 1
    assert "found none of them" in answer.err
    assert (out / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "options", [["--unlisted-are-clean"], ["--no-overlays"], ["--overwrite"], ["--truth", "t.csv"]]
)
def test_options_that_would_be_ignored_are_refused(call, frames, options):
    answer = call("inspect", frames, *options)
    assert answer.code == 1
    assert len(answer.err.splitlines()) == 1


def test_what_lies_in_the_output_is_not_inspected(call, frames):
    answer = call("inspect", frames, "--out", frames.parent, "--overwrite")
    assert answer.code == 1
    assert "holds what is to be inspected" in answer.err


def test_hidden_files_are_counted_in_the_report(call, frames, tmp_path):
    folder = tmp_path / "in"
    (folder / ".cam").mkdir(parents=True)
    for path in frames.rglob("*.jpg"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / ".hidden.jpg").write_bytes(b"x")
    (folder / ".cam" / "a.jpg").write_bytes(b"x")
    call("inspect", folder, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Not looked at: 2 hidden files" in page
