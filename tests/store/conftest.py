import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.store.results import run_of

from steelsight.errors import StoreError
from steelsight.store.store import Run, Store


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "store.sqlite"


@pytest.fixture
def run() -> Run:
    return run_of("run 1")


@pytest.fixture
def store(path) -> Iterator[Store]:
    with Store(path, group_ms=1) as opened:
        yield opened


@pytest.fixture
def opened(path) -> Iterator[Callable[..., Store]]:
    """Opens stores that are closed at the end, whatever became of them."""
    with contextlib.ExitStack() as stack:

        def open_store(where: Path = path, **given) -> Store:
            store = Store(where, **{"group_ms": 1} | given)
            stack.callback(_close, store)
            return store

        yield open_store


def _close(store: Store) -> None:
    with contextlib.suppress(StoreError):
        store.close()
