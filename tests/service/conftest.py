"""A real service in a process of its own, and a browser that forgives nothing."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Service:
    """A service that runs.

    Attributes:
        url: without a slash at its end.
        data: its folder.
        process: of ``steelsight serve``.
        client: asks it, relative to ``url``.
    """

    url: str
    data: Path
    process: subprocess.Popen[str]
    client: httpx.Client

    def sample(self, number: int = 1) -> bytes:
        """A drawn frame, JPEG; 1 to 5 have defects, 6 has none."""
        return self.client.get(f"/v1/samples/{number}").content

    def inspect(self, image: bytes, name: str = "frame.jpg", **given: Any) -> httpx.Response:
        """Sends one frame; the name is quoted as the interface wants it."""
        from urllib.parse import quote

        headers = {"Content-Type": "image/jpeg", "X-Frame-Name": quote(name)}
        headers |= given.pop("headers", {})
        return self.client.post("/v1/inspect", content=image, headers=headers, **given)

    def end(self, how: int = signal.SIGTERM) -> int:
        """Sends a signal, and gives the exit code."""
        self.process.send_signal(how)
        return self.process.wait(60)


@contextmanager
def _serving(data: Path, options: Sequence[str] = ()) -> Iterator[Service]:
    """Starts ``steelsight serve`` on a free port, and ends it."""
    command = [sys.executable, "-c", "from steelsight.cli import main; main()", "serve"]
    command += ["--data", str(data), "--port", "0", *options]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            first = process.stdout.readline()
            found = re.search(r"at (https?://\S+?)/?$", first.strip())
            if found is None:
                process.kill()
                pytest.fail(f"no service: {first}{process.stderr.read()}")
            url = found[1].replace("0.0.0.0", "127.0.0.1")
            with httpx.Client(base_url=url, timeout=60, verify=False) as client:
                yield Service(url, data, process, client)
        finally:
            if process.poll() is None:
                process.kill()


@pytest.fixture(scope="session")
def serving() -> Any:
    """``serving(folder, options)`` starts another service; a context manager."""
    return _serving


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests of a module, in a fresh folder."""
    with _serving(tmp_path_factory.mktemp("service"), ["--threads", "2"]) as started:
        yield started


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, from the distribution's package."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def browser_page(browser: Any) -> Iterator[Any]:
    """A page; what it complains about fails the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []

    def on_console(message: Any) -> None:
        if message.type in ("error", "warning"):
            complaints.append(f"{message.type}: {message.text} {message.location}")

    def on_dialog(dialog: Any) -> None:
        complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("console", on_console)
    page.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
    page.on("dialog", on_dialog)
    page.complaints = complaints
    yield page
    page.close()
    assert complaints == []
