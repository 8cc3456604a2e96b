"""A run on Ray says what a local run says, also if workers die; Ray itself runs in a process apart.

Ray warns of much, and warnings are errors here.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from tests.journeys.test_cut_off import command, draw, run

from steelsight.engine.batch import PASSING
from steelsight.report.folder import RESULTS

pytest.importorskip("ray", reason="needs the extra ray")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra ray")

ENGINE = ("--engine", "onnxruntime")

KILLING = """
import os, signal, sys
from pathlib import Path
from steelsight.engine.on_ray import RaySettings, inspect_on_ray

killed = []

def actors():
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes()
            parents = (entry / "environ").read_bytes()
        except OSError:
            continue
        if words.startswith(b"ray::MapWorker") and sys.argv[3].encode() in parents:
            yield int(entry.name)

def on_count(done, found):
    if not killed and 0 < done < found:
        killed.extend(actors())
        os.kill(killed[0], signal.SIGKILL)

if __name__ == "__main__":
    settings = RaySettings(engine="onnxruntime", actors=2)
    summary = inspect_on_ray([sys.argv[1]], Path(sys.argv[2]), settings, on_count=on_count)
    print("killed", len(killed), "seen", summary.seen)
"""


STAND_IN = """
# Whoever has a GPU from Ray computes on the CPU under the label of cuda; nobody else may.
import os
from importlib import metadata
from steelsight.engine.cuda import Cuda

version = metadata.version
metadata.version = lambda name: "1.31.1" if name == "onnxruntime-gpu" else version(name)
Cuda._PROVIDER, Cuda._DEVICE = "CPUExecutionProvider", "cpu"
load = Cuda.__init__

def with_a_gpu(self, *given):
    assert os.environ.get("CUDA_VISIBLE_DEVICES") in ("0", "1"), "no GPU here"
    load(self, *given)

Cuda.__init__ = with_a_gpu
"""


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good, damaged and empty frames; no images, links that lead nowhere, strange names."""
    folder = draw(tmp_path_factory.mktemp("ray") / "frames", 150, seed=9)
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "00001.jpg").rename(folder / "deep" / "er" / "a b.jpg")
    (folder / "00002.jpg").rename(folder / os.fsdecode(b"caf\xe9 100%41.jpg"))
    (folder / "notes.txt").write_text("no image")
    (folder / "gone.jpg").symlink_to("nowhere")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / ".hidden.jpg").write_bytes(b"")
    (folder / "wrong.png").write_bytes((folder / "00003.jpg").read_bytes())
    return folder


@pytest.fixture(scope="module")
def here(frames: Path) -> list[str]:
    """Lines of a local run, sorted."""
    out = frames.parent / "here"
    done = run(command(frames, out, *ENGINE))
    assert done.returncode == 3, done.stderr
    return sorted((out / RESULTS).read_text(encoding="utf-8").splitlines())


def lines(out: Path) -> list[str]:
    return sorted(parquet.read_table(out / "parts").column("result").to_pylist())


@pytest.fixture(scope="module")
def on_ray(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by two workers, one of which was killed in between."""
    folder = tmp_path_factory.mktemp("out")
    script = folder / "killing.py"
    script.write_text(KILLING)
    mark = f"STEELSIGHT_TEST={folder.name}-{os.getpid()}"
    done = subprocess.run(
        [sys.executable, str(script), str(frames), str(folder / "out"), mark],
        env=os.environ | {"STEELSIGHT_TEST": mark.partition("=")[2]},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert f"seen {154 + 1}" in done.stdout
    assert "killed 0" not in done.stdout
    return folder / "out"


def test_the_result_set_is_that_of_a_local_run(on_ray: Path, here: list[str]) -> None:
    assert lines(on_ray) == here
    counts = Counter(json.loads(line)["verdict"] for line in here)
    noted = json.loads((on_ray / "run.json").read_text())
    assert noted["complete"]
    assert noted["counts"] == {
        "found": len(here),
        "seen": len(here),
        "ok": counts["OK"],
        "ng": counts["NG"],
        "unknown": counts["UNKNOWN"],
    }
    assert counts["NG"] >= 8


def test_columns_say_what_the_line_says(on_ray: Path) -> None:
    for row in parquet.read_table(on_ray / "parts").to_pylist():
        line = json.loads(row["result"])
        assert row["name"] == line["image"]
        for key in ("sha256", "verdict", "reason", "detail", "model", "decision", "engine"):
            assert row[key] == line[key]
        assert row["n_defects"] == len(line["defects"])
        assert row["defect_area_px"] == sum(defect["area_px"] for defect in line["defects"])
        assert (row["gate_ms"] or 0) > 0 or row["verdict"] == "UNKNOWN"


def on_ray_again(frames: Path | str, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(command(frames, out, "--on", "ray", "--workers", "2", *ENGINE, *options))


def test_a_run_that_is_done_inspects_only_what_could_not_be_read(
    frames: Path, on_ray: Path, here: list[str]
) -> None:
    again = on_ray_again(frames, on_ray, "--json")
    assert again.returncode == 3, again.stderr
    passing = [line for line in here if json.loads(line)["reason"] in PASSING]
    assert 0 < len(passing) < 5
    assert json.loads(again.stdout)["known"] == len(here) - len(passing)
    assert lines(on_ray) == here
    other = on_ray_again(frames / "deep", on_ray)
    assert other.returncode == 1
    assert "holds another run" in other.stderr


def test_an_address_is_read_through_its_file_system_and_a_run_goes_on(
    frames: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for n in range(10, 22):
        (folder / f"{n}.jpg").write_bytes((frames / f"000{n}.jpg").read_bytes())
    out, address = tmp_path / "out", f"file://{folder}"
    first = on_ray_again(address, out)
    assert first.returncode == 3, first.stderr
    assert run(command(folder, tmp_path / "here", *ENGINE)).returncode == 3
    expected = sorted((tmp_path / "here" / RESULTS).read_text().splitlines())
    assert lines(out) == expected
    # As after a stop before the last part: one more file has no result yet.
    (folder / "99.jpg").write_bytes((frames / "00050.jpg").read_bytes())
    second = on_ray_again(address, out, "--json")
    assert second.returncode == 3, second.stderr
    assert json.loads(second.stdout)["known"] == 12
    assert len(lines(out)) == 13
    # What changed is inspected again, what went is no longer counted.
    (folder / "10.jpg").write_bytes((frames / "00051.jpg").read_bytes())
    (folder / "11.jpg").unlink()
    third = on_ray_again(address, out, "--json")
    assert third.returncode in (0, 3), third.stderr
    told = json.loads(third.stdout)
    assert (told["found"], told["known"]) == (12, 11)
    (changed,) = (line for line in map(json.loads, lines(out)) if line["image"] == "10.jpg")
    assert changed["sha256"] == sha256((folder / "10.jpg").read_bytes()).hexdigest()
    assert len(lines(out)) == 12


def test_actors_with_gpus_and_a_driver_without(frames: Path, tmp_path: Path) -> None:
    """Ray is told of GPUs that are not there; only the network itself runs on the CPU."""
    (tmp_path / "sitecustomize.py").write_text(STAND_IN)
    standing_in = os.environ | {"PYTHONPATH": str(tmp_path)}
    standing_in.pop("CUDA_VISIBLE_DEVICES", None)
    on_ray = command(frames, tmp_path / "out", "--on", "ray", "--engine", "cuda", "--json")
    done = run(on_ray, env=standing_in | {"RAY_OVERRIDE_RESOURCES": '{"GPU": 2}'})
    assert done.returncode == 3, done.stderr

    local = command(frames, tmp_path / "here", "--engine", "cuda", "--no-overlays")
    here = run(local, env=standing_in | {"CUDA_VISIBLE_DEVICES": "0"})
    assert here.returncode == 3, here.stderr
    expected = sorted((tmp_path / "here" / RESULTS).read_text(encoding="utf-8").splitlines())
    assert lines(tmp_path / "out") == expected
    assert json.loads(done.stdout)["seen"] == len(expected) > 100
    assert {json.loads(line)["engine"] for line in expected} == {"cuda-int8"}


def test_what_gpus_on_a_cluster_need_is_told(frames: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(STAND_IN)
    words = command(frames, tmp_path / "out", "--on", "ray", "--engine", "cuda")
    for environment, said in (
        ({"PYTHONPATH": str(tmp_path)}, "expected GPUs in the Ray cluster for --engine cuda"),
        ({}, "expected onnxruntime-gpu here too"),
    ):
        done = run(words, env=os.environ | environment)
        assert done.returncode == 1, done.stderr
        (line,) = [text for text in done.stderr.splitlines() if text.startswith("steelsight:")]
        assert said in line
        assert "Traceback" not in done.stderr


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """An S3 server of others on this machine: its bucket, and where it answers."""
    server = pytest.importorskip("moto.server", reason="needs the extra dev")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    moto = server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield "steel", f"http://{host}:{port}"
    moto.stop()


def test_frames_in_s3_give_the_lines_of_a_local_run(
    frames: Path, bucket: tuple[str, str], tmp_path: Path
) -> None:
    import boto3

    name, endpoint = bucket
    store = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    store.create_bucket(Bucket=name)
    contents = {f"{n}.jpg": (frames / f"000{n}.jpg").read_bytes() for n in range(30, 40)}
    contents["deep/ä b+%20&.jpg"] = contents["30.jpg"]
    contents["cut.jpg"] = contents["31.jpg"][:5000]
    contents["empty.png"] = b""
    for image, content in contents.items():
        store.put_object(Bucket=name, Key=f"coil 17/{image}", Body=content)
        path = tmp_path / "coil 17" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    store.put_object(Bucket=name, Key="coil 18/other.jpg", Body=contents["30.jpg"])

    address = f"s3://{name}/coil%2017?endpoint_override={endpoint}&region=us-east-1"
    done = on_ray_again(address, tmp_path / "out")
    assert done.returncode == 3, done.stderr
    assert run(command(tmp_path / "coil 17", tmp_path / "here", *ENGINE)).returncode == 3
    expected = sorted((tmp_path / "here" / RESULTS).read_text(encoding="utf-8").splitlines())
    assert lines(tmp_path / "out") == expected
    assert len(expected) == len(contents)


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ("no/such/folder", (), "does not exist"),
        ("s.zip", (), "unpack it first"),
        ("file:///no/such/folder", (), "expected a folder at"),
        ("frames", ("--shard", "1/2"), "leave out --shard"),
    ],
    ids=["missing", "container", "address", "option"],
)
def test_mistakes_are_one_line(tmp_path: Path, given: str, options, said: str) -> None:
    draw(tmp_path / "frames", 2, seed=1)
    import zipfile

    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.write(tmp_path / "frames" / "00000.jpg", "a.jpg")
    words = command(given, tmp_path / "out", "--on", "ray", *ENGINE, *options)
    refused = run(words, cwd=tmp_path)
    assert refused.returncode == 1
    (line,) = [text for text in refused.stderr.splitlines() if text.startswith("steelsight:")]
    assert said in line
    assert "Traceback" not in refused.stderr


def test_without_ray_it_says_what_to_install(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['ray'] = None; from steelsight.cli import main; main()"
    draw(tmp_path / "frames", 1, seed=1)
    words = ["inspect", str(tmp_path / "frames"), "--on", "ray", "--out", str(tmp_path / "out")]
    done = run([sys.executable, "-c", hidden, *words])
    assert done.returncode == 1
    assert "pip install 'steelsight[ray]'" in done.stderr
