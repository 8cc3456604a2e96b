"""The pages for people: one HTML template each, and plain modules from ``static/``.

Templates hold no data of frames. The modules ask the HTTP interface, and put all foreign text into
the page as text. Nothing comes from another host, and the browser is told to allow nothing else.
"""

import asyncio
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import PurePath
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from steelsight import __version__
from steelsight.service.api import read_body
from steelsight.service.guard import COOKIE, LOGIN, HttpError, is_same, pass_of

PAGES = {
    "/": ("inspect", "Inspect"),
    "/review": ("review", "Review"),
    "/watch": ("watch", "Watch"),
    "/runs": ("runs", "Runs and models"),
    "/docs/api": ("api", "HTTP"),
}
"""Template and title by path, in the order of the menu."""
MADE_ELSEWHERE = "api"
"""By ``api_page``, which needs the description of the whole service."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    # Not "no-referrer": forms would have the origin "null", which is refused.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
MAX_LOGIN_BYTES = 4096
WRONG_TOKEN_S = 1.0
"""Before a wrong token is told."""
PASS_S = 30 * 24 * 3600
"""A browser need not give the token again for so long."""
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def router(token: str | None = None) -> APIRouter:
    """The pages, ``/static/NAME``, and a place to give the token if there is one."""
    routes = APIRouter(include_in_schema=False)
    for path, (template, title) in PAGES.items():
        if template == MADE_ELSEWHERE:
            continue
        routes.add_api_route(path, _route(template, title, path), response_class=HTMLResponse)
    if token is not None:
        _add_login(routes, token)

    @routes.get("/static/{name}")
    def static(name: str) -> Response:
        found = _static().get(name)
        if found is None:
            raise HttpError(
                404, "not-found", "expected a file of the pages, there is none so named"
            )
        media_type, content = found
        return Response(content, media_type=media_type, headers=HEADERS)

    return routes


def _route(template: str, title: str, path: str) -> Callable[[], HTMLResponse]:
    # Not a lambda with defaults: FastAPI would take them from the query.
    def shown() -> HTMLResponse:
        return page(template, title, path)

    return shown


def _add_login(routes: APIRouter, token: str) -> None:
    @routes.get(LOGIN)
    def asked() -> HTMLResponse:
        return page("login", "Sign in", LOGIN, failed=False)

    @routes.post(LOGIN)
    async def given(request: Request) -> Response:
        text = (await read_body(request, MAX_LOGIN_BYTES)).decode("ascii", "replace")
        said = parse_qs(text).get("token", [""])[0].strip()
        if not is_same(said, token):
            await asyncio.sleep(WRONG_TOKEN_S)
            return page("login", "Sign in", LOGIN, 401, failed=True)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE,
            pass_of(token),
            max_age=PASS_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer


def page(template: str, title: str, path: str, status: int = 200, **values: object) -> HTMLResponse:
    """A page of this package.

    Args:
        template: its name, without suffix.
        title: of the window.
        path: which entry of the menu is this one.
        status: of the answer.
        values: for the template, which escapes them.
    """
    text = (
        _templates()
        .get_template(f"{template}.html.j2")
        .render(title=title, path=path, pages=PAGES, version=__version__, **values)
    )
    return HTMLResponse(text, status, headers=HEADERS)


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("steelsight.service"), autoescape=True, undefined=StrictUndefined
    )


@cache
def _static() -> dict[str, tuple[str, bytes]]:
    """All files that may be asked for: nothing of a request becomes a path."""
    folder = resources.files("steelsight.service") / "static"
    return {
        file.name: (_TYPES[PurePath(file.name).suffix], file.read_bytes())
        for file in folder.iterdir()
        if PurePath(file.name).suffix in _TYPES
    }
