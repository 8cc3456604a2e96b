"""What runs the service in a plant: Dockerfile, systemd unit, wheelhouse and docs/deploy.md."""

import fnmatch
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytest.importorskip("fastapi", reason="needs the extra service")

from steelsight.service.app import DRAIN_S

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "deploy" / "steelsight.service"
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
TOKEN = "a-secret-of-the-plant"


def dockerfile() -> list[tuple[str, str]]:
    """Instructions of the last stage."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text())
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]
    last = max(n for n, (word, _) in enumerate(found) if word == "FROM")
    return found[last:]


def unit() -> dict[str, list[str]]:
    """Settings of the unit; one can be there several times."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if re.match(r"\w+=", line):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def image_command(data: Path) -> list[str]:
    words: list[str] = json.loads(dict(dockerfile())["ENTRYPOINT"])
    places = {"/data": str(data), "/run/secrets/steelsight-token": str(data.parent / "token")}
    return [places.get(word, word) for word in words]


def unit_command(data: Path) -> list[str]:
    (line,) = unit()["ExecStart"]
    line = line.replace("${STATE_DIRECTORY}", str(data))
    return shlex.split(line.replace("${CREDENTIALS_DIRECTORY}", str(data.parent)))


@contextmanager
def started(command: list[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The port on which a documented command serves, here and on a free one, and its process."""
    assert Path(command[0]).name == "steelsight"
    words = [sys.executable, "-c", "from steelsight.cli import main; main()", *command[1:]]
    with subprocess.Popen(
        [*words, "--port", "0", "--threads", "1"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"at http://0\.0\.0\.0:(\d+)/", process.stdout.readline())
            assert found, "no service"
            yield found[1], process
        finally:
            if process.poll() is None:
                process.kill()


def ask(port: str, path: str, body: bytes | None = None) -> bytes:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "image/jpeg"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: bytes = answer.read()
        return content


@pytest.mark.parametrize("command", [image_command, unit_command])
def test_the_service_starts_as_it_is_deployed(command, tmp_path):
    """Its health check finds it, the figures of the alerts are there, and a backup is whole."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    data = tmp_path / "data"
    with started(command(data)) as (port, process):
        (health,) = [v for k, v in dockerfile() if k == "HEALTHCHECK"]
        words = json.loads(health[health.index("CMD") + 3 :])
        assert words[0] == "python"
        asked = [word.replace("8765", port) for word in words[1:]]
        assert subprocess.run([sys.executable, *asked]).returncode == 0
        answer = json.loads(ask(port, "/v1/inspect", ask(port, "/v1/samples/1")))
        figures = ask(port, "/metrics").decode()
        told = set(re.findall(r"^# HELP (\w+)", figures, re.MULTILINE))
        wanted = set(
            re.findall(r"steelsight_\w+", "".join(re.findall(r"expr:.*?for:", PAGE, re.DOTALL)))
        )
        assert len(wanted) >= 4
        assert wanted <= told
        back_up(data / "store.db", tmp_path / "copy.db")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert subprocess.run([sys.executable, *asked], stderr=subprocess.DEVNULL).returncode != 0
    (data / "store.db").unlink()
    assert not [*data.glob("store.db-*")]
    shutil.copy(tmp_path / "copy.db", data / "store.db")
    with started(command(data)) as (port, process):
        assert json.loads(ask(port, f"/v1/results/{answer['id']}"))["sha256"] == answer["sha256"]
        assert ask(port, f"/v1/results/{answer['id']}/frame")


def back_up(store: Path, copy: Path) -> None:
    """As the page says, while the service has the store open."""
    code = re.search(r"bin/python -c '(import apsw.*?)' store\.db", PAGE, re.DOTALL)
    assert code
    assert store.with_name("store.db-wal").stat().st_size
    subprocess.run([sys.executable, "-c", code[1], str(store), str(copy)], check=True)
    assert apsw.Connection(str(copy)).execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# ------------------------------------------------------------------------------------- container


def test_the_image_runs_as_nobody_in_particular():
    stage = dict(dockerfile())
    number = stage["USER"].partition(":")[0]
    assert int(number) > 0
    assert f"--uid {number}" in (ROOT / "Dockerfile").read_text()
    assert stage["ENTRYPOINT"].startswith("[")  # without a shell SIGTERM reaches the service
    assert stage["VOLUME"] == "/data"
    assert not re.search(r"(?i)ARG.*(token|secret|password)", (ROOT / "Dockerfile").read_text())


def test_the_build_context_has_what_the_wheel_is_made_of():
    text = (ROOT / "Dockerfile").read_text()
    copied = [
        name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()
    ]
    allowed = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert {*copied} == {*allowed}
    project = (ROOT / "pyproject.toml").read_text()
    needed = {
        "pyproject.toml",
        "src",
        *re.findall(r'(?:readme|license-files) = \W*"(\w+\.?\w*)"', project),
    }
    assert {"README.md", "LICENSE"} < needed <= {*copied}


# --------------------------------------------------------------------------------------- systemd


def test_the_unit_waits_for_the_last_answers():
    (seconds,) = unit()["TimeoutStopSec"]
    assert int(seconds) > DRAIN_S + 15


@pytest.fixture
def verifiable(tmp_path):
    """The unit with a program that is there."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/steelsight/bin/steelsight", sys.executable))
    return copy


def test_systemd_understands_the_unit(verifiable):
    done = subprocess.run(
        ["systemd-analyze", "verify", str(verifiable)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_is_confined(verifiable):
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(verifiable)],
        capture_output=True,
        text=True,
        env=os.environ | {"SYSTEMD_EMOJI": "0"},
    )
    level = re.search(r"Overall exposure level.*: ([\d.]+)", done.stdout)
    assert level
    assert float(level[1]) <= 1.5


# ------------------------------------------------------------------------------------ wheelhouse


def needed_by_the_service() -> set[str]:
    """All distributions of ``steelsight[service]``, as pip would take them here."""
    # Of an editable installation the requirements may be old: those of the file count.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [*project["dependencies"], *project["optional-dependencies"]["service"]]
    found: set[tuple[str, str]] = set()
    while waiting:
        wanted = Requirement(waiting.pop())
        for extra in wanted.extras or {""}:
            if (wanted.name, extra) not in found:
                found.add((wanted.name, extra))
                own = map(Requirement, importlib.metadata.requires(wanted.name) or ())
                waiting += [
                    f"{one.name}[{','.join(one.extras)}]"
                    for one in own
                    if one.marker is None or one.marker.evaluate({"extra": extra})
                ]
    return {canonicalize_name(name) for name, _ in found}


def test_every_wheel_is_pinned():
    text = (ROOT / "requirements" / "constraints.txt").read_text()
    pinned = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)}
    needed = needed_by_the_service()
    assert {"fastapi", "uvicorn", "starlette", "onnxruntime"} <= needed
    assert needed - pinned == set()
    assert not needed & {"torch", "openvino"}


def test_the_wheelhouse_has_the_extra_that_was_asked_for():
    command = ["make", "--dry-run", "wheelhouse", "EXTRAS=service,openvino", "PYTHON=python3.99"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "python3.99 -m pip" in told
    assert "'.[service,openvino]'" in told
    assert "--constraint requirements/constraints.txt" in told
    assert "sha256sum *.whl > SHA256SUMS" in told


def test_the_wheel_has_the_pages_and_the_model(tmp_path):
    pytest.importorskip("hatchling", reason="needs hatchling, which builds the wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--quiet", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("steelsight-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    source = ROOT / "src"
    for kind in ("*.j2", "*.js", "*.css", "*.svg", "*.onnx", "*.toml"):
        here = {path.relative_to(source).as_posix() for path in source.rglob(kind)}
        assert here
        assert here <= {*names}
    assert not fnmatch.filter(names, "*test*.py")
