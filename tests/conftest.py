import os
from pathlib import Path

import pytest

# Before torch is imported: threads that spin while they wait make a loaded machine crawl.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# No test measures engines or writes the user's cache, unless it sets both aside (test_choice.py).
os.environ["STEELSIGHT_ENGINE"] = "onnxruntime"
# Set on build machines, seldom by users; it hides output that a process forgot to flush.
os.environ.pop("PYTHONUNBUFFERED", None)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    path = Path(__file__).resolve().parents[1].parent / "shared"
    if not path.is_dir():
        pytest.skip("needs ../shared: real frames are not part of this repository")
    return path
