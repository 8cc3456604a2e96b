"""What stands before every route: who may ask, how large a body may be, and how errors look.

A service on this machine alone needs no token, but a page of another site must not reach it through
the browser: requests with a foreign ``Host`` (DNS rebinding) or ``Origin`` are refused. On any
other address every request needs the token.
"""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from secrets import token_hex
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from steelsight.service.metrics import Metrics

log = logging.getLogger("steelsight.service")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOGIN = "/login"
OPEN_PATHS = ("/v2/health/live", LOGIN)
"""Without a token: whoever restarts services must reach the first."""
OPEN_FOLDER = "/static/"
COOKIE = "steelsight"
MOST_BODY_BYTES = {"/v1/inspect": 80 << 20, "/v1/inspect/batch": (1 << 30) + (1 << 20)}
OTHER_BODY_BYTES = 16 << 20
"""Of a request, by its path; inference requests have the limit of a frame."""
LINGER_S, LINGER_BYTES = 2.0, 64 << 20
"""For what is still being sent when the answer is an error."""


class HttpError(Exception):
    """An answer that is not what was asked for.

    Attributes:
        status: of HTTP.
        code: for machines; stays the same over versions.
        message: one line for people: expected, received, what to do.
        headers: further ones.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})


def error_facts(path: str, code: str, message: str, request_id: str) -> dict[str, Any]:
    """The body of an error; clients of the Open Inference Protocol expect a text as ``error``."""
    if path.startswith("/v2"):
        return {"error": message, "code": code, "id": request_id}
    return {"error": {"code": code, "message": message, "id": request_id}}


class Guard:
    """ASGI middleware around the whole service.

    Args:
        app: what it guards.
        token: required of every request; ``None`` on a loopback address.
        metrics: counts requests.
    """

    def __init__(self, app: ASGIApp, token: str | None, metrics: "Metrics") -> None:
        self._app, self._token, self._metrics = app, token, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.monotonic()
        request_id = token_hex(6)
        scope.setdefault("state", {})["request_id"] = request_id
        status, answered = 0, False
        is_inference = scope["path"].startswith("/v2/")
        path = "/v1/inspect" if is_inference else scope["path"]
        body = _Body(receive, MOST_BODY_BYTES.get(path, OTHER_BODY_BYTES))

        async def noted(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            elif status >= HTTPStatus.BAD_REQUEST and not message.get("more_body", False):
                # Whoever still sends would lose the answer with the connection.
                await send({**message, "more_body": True})
                await body.drain()
                message = {"type": "http.response.body"}
            await send(message)
            answered = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            self._check(scope)
            await self._app(scope, body.receive, noted)
        except HttpError as error:
            await _answer(error, scope, noted)
        except Exception:
            log.exception("request %s failed", request_id)
            if answered:
                return
            if status:  # it has begun to answer: the connection must break
                raise
            await _answer(failed(request_id), scope, noted)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.count_request(path, status, time.monotonic() - started_s)

    def _check(self, scope: Scope) -> None:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        host = headers.get("host", "")
        origin = headers.get("origin")
        foreign = (origin is not None and origin.partition("://")[2] != host) or (
            headers.get("sec-fetch-site") == "cross-site" and scope["method"] != "GET"
        )
        if foreign:
            raise HttpError(
                403, "foreign-origin", "expected a request of this page, got one of another site"
            )
        if self._token is None:
            if _name_of(host) not in LOOPBACK:
                raise HttpError(
                    403,
                    "foreign-host",
                    "expected 127.0.0.1 or localhost as host, got another; use that address",
                )
            return
        if scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDER):
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and is_same(given.strip(), self._token):
            return
        cookies = SimpleCookie()
        with suppress(CookieError):
            cookies.load(headers.get("cookie", ""))
        if COOKIE in cookies and is_same(cookies[COOKIE].value, pass_of(self._token)):
            return
        if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            raise HttpError(
                303, "no-token", "expected the token of the service", {"Location": LOGIN}
            )
        raise HttpError(
            401,
            "no-token",
            "expected the token of the service as 'Authorization: Bearer ...'",
            {"WWW-Authenticate": "Bearer"},
        )


def failed(request_id: str) -> HttpError:
    """What is told of a mistake of ours."""
    return HttpError(500, "internal", f"the service failed; its log has more under {request_id}")


class _Body:
    """Of a request; knows whether all of it came."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._ended = receive, False
        self._left = most

    async def receive(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HttpError(413, "too-large", "expected a smaller body; send less at once")
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Reads on for a while, and forgets it."""
        left = LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not self._ended and left > 0:
                    left -= len((await self.receive()).get("body", b""))


def pass_of(token: str) -> str:
    """What a browser keeps after its user gave the token: the token cannot be had from it."""
    return hmac.new(token.encode(), b"steelsight page", "sha256").hexdigest()


def is_same(given: str, secret: str) -> bool:
    """Compares in a time that tells nothing of the secret."""
    return hmac.compare_digest(given.encode(), secret.encode())


async def _answer(error: HttpError, scope: Scope, send: Send) -> None:
    request_id = scope["state"]["request_id"]
    facts = error_facts(scope["path"], error.code, error.message, request_id)
    body = json.dumps(facts).encode()
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        # What of the body was not read must not be taken for the next request.
        "Connection": "close",
        **error.headers,
    }
    start = [(k.lower().encode(), v.encode("latin-1")) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": start})
    await send({"type": "http.response.body", "body": body})


def _name_of(host: str) -> str:
    """Without port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def phrase(status: int) -> str:
    """The code of an error that has none of its own, such as ``not-found``."""
    return HTTPStatus(status).phrase.lower().replace(" ", "-")
