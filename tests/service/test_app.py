"""Who may ask, at which address, and how the service starts and ends."""

import asyncio
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import httpx
import pytest

from steelsight.bundle import DEFAULT_BUNDLE
from steelsight.errors import InputError
from steelsight.exports import StoredResults
from steelsight.service import app as module
from steelsight.service.app import bound, check_address, create_app
from steelsight.service.metrics import Metrics
from steelsight.service.room import Room, RoomSettings

TOKEN = "a-secret-of-the-plant"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, serving):
    """A service for other machines."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(f"{TOKEN}\n")
    options = ["--host", "0.0.0.0", "--token-file", str(folder / "token"), "--threads", "1"]
    with serving(folder / "data", options) as started:
        yield started


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong-wrong-wrong-wrong"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer \u00e4".encode()},
        {"Cookie": "steelsight=wrong"},
        {"Cookie": f"steelsight={TOKEN}"},
        {"Cookie": '=;="x'},
    ],
)
@pytest.mark.parametrize("path", ["/v1/results", "/metrics", "/openapi.json", "/", "/v2/models/x"])
def test_nothing_is_told_without_the_token(guarded, path, headers):
    answer = guarded.client.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "severstal" not in answer.text


def test_with_the_token_all_is_told(guarded):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert guarded.client.get("/v1/results", headers=headers).status_code == 200
    # The host is the business of the token then: other machines call it by many names.
    answer = guarded.client.get("/v1/results", headers=headers | {"Host": "line7.example"})
    assert answer.status_code == 200
    assert guarded.client.get("/v2/health/live").json() == {"live": True}


def test_a_browser_gives_the_token_once(guarded):
    with httpx.Client(base_url=guarded.url) as browser:
        asked = browser.get("/", headers={"Accept": "text/html,*/*"})
        assert (asked.status_code, asked.headers["location"]) == (303, "/login")
        form = browser.get("/login")
        assert form.status_code == 200
        assert "default-src 'none'" in form.headers["content-security-policy"]
        assert browser.get("/static/app.css").status_code == 200
        started = time.monotonic()
        wrong = browser.post("/login", data={"token": "not-this-one"})
        assert (wrong.status_code, "That is not the token" in wrong.text) == (401, True)
        assert time.monotonic() - started >= 1
        foreign = browser.post("/login", data={"token": TOKEN}, headers={"Origin": "http://e.org"})
        assert foreign.status_code == 403
        right = browser.post("/login", data={"token": f" {TOKEN} "})
        assert (right.status_code, right.headers["location"]) == (303, "/")
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert TOKEN not in cookie
        assert browser.get("/v1/models").status_code == 200
        changed = browser.post("/v1/models/activate", json={"name": "none"})
        assert changed.status_code == 404  # it may, but there is none
        assert browser.post("/login", content=b"x" * 5000).status_code == 413


def test_the_default_comes_with_the_decision_it_was_started_with(serving, tmp_path):
    text = (DEFAULT_BUNDLE / "decision.toml").read_text()
    (tmp_path / "own.toml").write_text(text.replace("clear_below = 0.15148", "clear_below = 0.1"))
    (tmp_path / "token").write_text(TOKEN)
    options = ["--token-file", str(tmp_path / "token"), "--threads", "1"]
    options += ["--decision", str(tmp_path / "own.toml")]
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with serving(tmp_path / "data", options) as service:
        before = service.client.get("/v1/models", headers=headers).json()["active"]
        assert before["gate"]["clear_below"] == 0.1
        answer = service.client.post(
            "/v1/models/activate", json={"name": "default"}, headers=headers
        )
        assert answer.json()["active"]["decision"] == before["decision"]


def test_models_are_switched_with_the_token(guarded):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    before = guarded.client.get("/v1/models", headers=headers).json()["active"]
    answer = guarded.client.post("/v1/models/activate", json={"name": "default"}, headers=headers)
    assert answer.status_code == 200
    assert answer.json()["active"]["model"] == before["model"]
    assert answer.json()["active"]["run"] != before["run"]
    runs = guarded.client.get("/v1/runs", headers=headers).json()["runs"]
    assert [run["run"] for run in runs] == [before["run"], answer.json()["active"]["run"]]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org", "", "127.0.0.256"])
def test_other_addresses_want_a_token(host):
    with pytest.raises(InputError, match="--host"):
        check_address(host, None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_addresses_of_this_machine_do_not(host):
    check_address(host, None)


def test_a_port_in_use_is_told():
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(InputError, match="--port"):
            bound("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(InputError, match="--port"):
        bound("127.0.0.1", 70000)


def run(*options):
    return subprocess.run(
        [sys.executable, "-c", "from steelsight.cli import main; main()", "serve", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--queue", "0"], "--queue"),
        (["--certificate", "x.pem"], "--key"),
        (["--token-file", "none"], "none"),
        (["--token-file", "short"], "at least 16"),
        (["--certificate", "short", "--key", "short"], "--certificate"),
        (["--bundle", "none"], "none"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("secret")
    done = run("--port", "0", *options)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_drains(tmp_path, serving, how):
    """Whoever was taken is answered; the store holds every answer and is closed."""
    answers = []
    with serving(tmp_path / "data", ["--threads", "1"]) as service:
        image = service.sample(1)

        def send(number):
            with httpx.Client(base_url=service.url, timeout=60) as client:
                while True:
                    try:
                        answer = client.post(
                            "/v1/inspect",
                            content=image + bytes([number]),
                            headers={"Content-Type": "image/jpeg"},
                        )
                    except httpx.TransportError:
                        return  # it listens no more
                    if answer.status_code == 503:
                        return
                    answers.append(answer)
                    number += 10

        senders = [Thread(target=send, args=(number,)) for number in range(6)]
        for sender in senders:
            sender.start()
        while len(answers) < 8:
            time.sleep(0.01)
        assert service.end(how) == 0
        for sender in senders:
            sender.join(30)
        assert "Ending" in service.process.stdout.read()
        assert service.process.stderr.read() == ""
    assert not (tmp_path / "data" / "store.db-wal").exists()
    assert {answer.status_code for answer in answers} == {200}
    with StoredResults(tmp_path / "data" / "store.db") as store:
        ids = {row.id for row in store.inspections()}
        assert {answer.json()["id"] for answer in answers} <= ids
        assert store.runs()[0].complete


def test_what_was_acknowledged_survives_a_kill(tmp_path, serving):
    with serving(tmp_path / "data", ["--threads", "2"]) as service:
        image = service.sample(2)
        ids = [service.inspect(image + bytes([n])).json()["id"] for n in range(5)]
        service.end(signal.SIGKILL)
    with StoredResults(tmp_path / "data" / "store.db") as store:
        assert {row.id for row in store.inspections()} >= set(ids)
    with serving(tmp_path / "data") as service:  # and it starts again
        assert service.client.get("/v1/results").json()["matching"] >= len(set(ids))


def test_https_with_an_own_certificate(tmp_path, serving):
    made = subprocess.run(
        shlex.split(
            "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 "
            "-subj /CN=localhost"
        ),
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("needs openssl")
    options = ["--certificate", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem")]
    with serving(tmp_path / "data", [*options, "--threads", "1"]) as service:
        assert service.url.startswith("https://")
        assert service.inspect(service.sample(1)).json()["verdict"] == "NG"


def test_a_mistake_of_ours_is_told_without_its_inside(tmp_path, monkeypatch, caplog):
    settings = RoomSettings(data=tmp_path / "data", engine="onnxruntime", threads=1)
    with Room(settings) as room:
        monkeypatch.setattr(type(room.active), "to_json", lambda _: 1 / 0)
        app = create_app(room, Metrics())

        async def ask():
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost"
            ) as client:
                return await client.get("/v1/models")

        answer = asyncio.run(ask())
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["code"] == "internal"
    assert error["id"] == answer.headers["x-request-id"]
    assert "ZeroDivisionError" not in answer.text
    assert error["id"] in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_it_starts_without_torch_and_soon(tmp_path, serving):
    with serving(tmp_path / "data", ["--threads", "1"]) as service:
        maps = Path(f"/proc/{service.process.pid}/maps").read_text()
        assert "libtorch" not in maps
        assert not re.search(r"/(pandas|matplotlib|ray)/", maps)


def test_only_this_machine_is_listened_to(service):
    port = int(service.url.rpartition(":")[2])
    found = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True, check=True)
    own = [line.split()[1] for line in found.stdout.splitlines() if f":{port:04X} " in line]
    assert any(one == f"0100007F:{port:04X}" for one in own)
    assert not any(one == f"00000000:{port:04X}" for one in own)
    assert module.MOST_CONNECTIONS > 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"junk\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
