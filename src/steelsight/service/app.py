"""Puts the service together: engine room, routes, guard; and runs it until a signal ends it."""

import logging
import signal
import socket
import ssl
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse

from steelsight import __version__
from steelsight.errors import InputError, StoreError
from steelsight.service import api, api_page, open_inference, pages, review, watch
from steelsight.service.guard import Guard, HttpError, error_facts, failed, phrase
from steelsight.service.metrics import Metrics
from steelsight.service.room import Room

DRAIN_S = 30
"""For answers on their way, after a signal."""
MOST_CONNECTIONS = 512
DESCRIPTION = """Detects and outlines defects on steel. Every frame is OK, NG, or UNKNOWN with a
reason; an answer with a verdict is on the disk. Errors are
`{"error": {"code": ..., "message": ..., "id": ...}}`."""


def create_app(room: Room, metrics: Metrics, token: str | None = None) -> Guard:
    """The whole service as an ASGI application.

    Args:
        room: inspects; closed by whoever made it.
        metrics: is told of every inspection by the room.
        token: required of every request, if given.
    """
    app = FastAPI(
        title="steelsight",
        version=__version__,
        description=DESCRIPTION,
        # Their pages take scripts from other hosts.
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(
        api.router(room, partial(metrics.text, room), may_activate=token is not None)
    )
    app.include_router(review.router(room))
    app.include_router(watch.router(room))
    app.include_router(open_inference.router(room))
    app.include_router(pages.router(token))

    @app.get(api_page.PATH, include_in_schema=False)
    def described() -> HTMLResponse:
        return api_page.api_page(app.openapi())

    @app.exception_handler(HttpError)
    async def told(request: Request, error: HttpError) -> JSONResponse:
        return _error(request, error.status, error.code, error.message, error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, _error_of_ours: Exception) -> JSONResponse:
        error = failed(request.state.request_id)
        return _error(request, error.status, error.code, error.message)

    @app.exception_handler(InputError)
    async def refused(request: Request, error: InputError) -> JSONResponse:
        return _error(request, 400, "bad-request", str(error))

    @app.exception_handler(StoreError)
    async def not_stored(request: Request, error: StoreError) -> JSONResponse:
        return _error(request, 507, "store", str(error))

    @app.exception_handler(HTTPException)
    async def of_starlette(request: Request, error: HTTPException) -> JSONResponse:
        status = error.status_code
        return _error(request, status, phrase(status), str(error.detail), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        return _error(request, 422, "not-valid", f"{where}: {problem['msg']}; see /openapi.json")

    return Guard(app, token, metrics)


def _error(
    request: Request,
    status: int,
    code: str,
    message: str,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    body = error_facts(request.url.path, code, message, request.state.request_id)
    headers = headers or {}
    if status in (400, 408, 413, 415, 503):
        # What of the body was not read must not be taken for the next request.
        headers |= {"Connection": "close"}
    return JSONResponse(body, status, headers)


def check_address(host: str, token: str | None) -> None:
    """Refuses to listen to other machines without a token.

    Raises:
        InputError: ``host`` is no address, or one that others reach, without a token.
    """
    try:
        is_own = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        raise InputError(
            f"expected an IP address for --host such as 127.0.0.1 or 0.0.0.0, got {host!r}"
        ) from None
    if not is_own and token is None:
        raise InputError(
            f"expected --token-file with --host {host}: other machines reach that address; give a "
            "file with a secret, or leave out --host"
        )


def bound(host: str, port: int) -> socket.socket:
    """A listening socket; taken before anything is loaded, so that a mistake is told at once.

    Raises:
        InputError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise InputError(
            f"expected to listen at {host} port {port}, got: {error}; give another --port, or end "
            "what listens there"
        ) from None
    return listening


def run(
    app: Guard,
    listening: socket.socket,
    on_ready: Callable[[], None],
    certificate: tuple[str, str] | None = None,
) -> None:
    """Serves until SIGTERM or Ctrl-C; what was accepted is answered first.

    Args:
        app: from ``create_app``.
        listening: from ``bound``.
        on_ready: called when requests are taken.
        certificate: files of certificate and key, for HTTPS.
    """
    # uvicorn's own lines would repeat ours; what goes wrong in it is told.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    given: dict[str, Any] = {}
    if certificate:
        given = {"ssl_certfile": certificate[0], "ssl_keyfile": certificate[1]}
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        http="h11",
        loop="asyncio",
        ws="none",
        backlog=128,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=DRAIN_S,
        **given,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"expected a certificate and its key, got: {error}; check --certificate and --key"
        ) from None
    server = _Server(config, on_ready)
    server.run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """As uvicorn's, which raises the signal again after the last answer.

        That would end the process before the room has closed its store.
        """
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()
