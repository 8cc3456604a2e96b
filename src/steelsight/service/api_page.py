"""The description of all routes as a page, made from ``/openapi.json`` itself; needs no script."""

import json
import re
from collections.abc import Iterator
from typing import Any

from fastapi.responses import HTMLResponse

from steelsight.service.pages import page

PATH = "/docs/api"


def api_page(description: dict[str, Any]) -> HTMLResponse:
    """The page.

    Args:
        description: of FastAPI.
    """
    return page(
        "api",
        "HTTP",
        PATH,
        openapi=description["openapi"],
        description=_plain(description["info"].get("description", "")),
        routes=list(_routes(description)),
    )


def _routes(description: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path, methods in description["paths"].items():
        for method, facts in methods.items():
            words = [_plain(part) for part in facts.get("description", "").split("\n\n") if part]
            yield {
                "anchor": re.sub(r"[^a-z0-9]+", "-", f"{method}{path}".lower()).strip("-"),
                "method": method.upper(),
                "path": path,
                "words": words or [facts.get("summary", "")],
                "parameters": [_parameter(one) for one in facts.get("parameters", ())],
                "body": _body(facts),
                "curl": _curl(method, path, facts, description),
                "example": _example_answer(facts),
                "answers": [
                    (status, _plain(answer.get("description", "")))
                    for status, answer in facts.get("responses", {}).items()
                ],
            }


def _plain(text: str) -> str:
    """One line, without the marks of code."""
    return " ".join(text.replace("`", "").split())


def _parameter(one: dict[str, Any]) -> dict[str, Any]:
    schema = one.get("schema", {})
    kinds = schema.get("anyOf", [schema])
    told = [kind.get("type", "") for kind in kinds if kind.get("type") not in (None, "null")]
    limits = [
        f"{words} {kind[key]}"
        for kind in kinds
        for key, words in (
            ("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"),
            ("maxLength", "at most characters:"), ("pattern", "like"),
        )
        if key in kind
    ]  # fmt: skip
    default = schema.get("default")
    if default is not None:
        limits.append(f"default {json.dumps(default)}")
    what = _plain(one.get("description") or schema.get("description") or "")
    return {
        "name": one["name"],
        "where": one["in"],
        "required": one.get("required", False),
        "what": " ".join(filter(None, [what, f"({', '.join([*told, *limits])})"])),
    }


def _body(facts: dict[str, Any]) -> str:
    return ", ".join(facts.get("requestBody", {}).get("content", {}))


def _example_answer(facts: dict[str, Any]) -> str:
    for answer in facts.get("responses", {}).values():
        for content in answer.get("content", {}).values():
            if "example" in content:
                return json.dumps(content["example"], indent=2)
    return ""


def _curl(method: str, path: str, facts: dict[str, Any], description: dict[str, Any]) -> str:
    parts = ["curl"] if method == "get" else ["curl", "-X", method.upper()]
    kinds = facts.get("requestBody", {}).get("content", {})
    if "image/jpeg" in kinds:
        parts = ["curl", "--data-binary @frame.jpg", "-H 'Content-Type: image/jpeg'"]
    elif "multipart/form-data" in kinds:
        parts = ["curl", "-F frames=@1.jpg", "-F frames=@2.jpg"]
    elif "application/json" in kinds:
        example = _example_body(kinds["application/json"], description)
        parts = ["curl", "-H 'Content-Type: application/json'", f"-d '{json.dumps(example)}'"]
    needed = [
        f"{one['name']}=..."
        for one in facts.get("parameters", ())
        if one["in"] == "query" and one.get("required")
    ]
    query = f"?{'&'.join(needed)}" if needed else ""
    return " ".join([*parts, f"'http://127.0.0.1:8765{path}{query}'"])


def _example_body(content: dict[str, Any], description: dict[str, Any]) -> Any:
    schema = content.get("schema", {})
    if "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "example" in schema:
        return schema["example"]
    if schema.get("examples"):
        return schema["examples"][0]
    return dict.fromkeys(schema.get("required", schema.get("properties", {})), "...")
