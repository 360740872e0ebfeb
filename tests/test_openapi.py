"""/openapi.json says what the service does, and /docs shows it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from conftest import API, Client, Person, interception
from jsonschema import Draft202012Validator
from marshmallow import Schema
from openapi_spec_validator import validate
from referencing import Registry
from referencing.jsonschema import DRAFT202012
from yarl import URL

from service import errors, openapi, resources, routes
from service.app import build_app
from service.handlers import documents
from service.schemas import answers, examples
from service.settings import Settings

Record = Callable[..., Awaitable[dict[str, Any]]]

# What only the command line meets, or what is told as another refusal.
# Nor those of the bridge, which answers in the provider's shape.
NOT_OVER_HTTP = {
    errors.BreakerOpen,
    errors.BridgeBusy,
    errors.KeyMissing,
    errors.OwnKeyForbidden,
    errors.ProviderUnavailable,
    errors.RecordingUnavailable,
    errors.SpoolFull,
    errors.UserExists,
    errors.UsernameTaken,
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(openapi.document_text())
    return found


@pytest.fixture(scope="module")
def check(document: dict[str, Any]) -> Callable[[Any, dict[str, Any]], None]:
    """Hold a value against a schema of the document."""
    registry = Registry[Any]().with_resource("urn:document", DRAFT202012.create_resource(document))

    def against(value: Any, schema: dict[str, Any]) -> None:
        absolute = json.loads(json.dumps(schema).replace('"#/', '"urn:document#/'))
        Draft202012Validator(absolute, registry=registry, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(
            value
        )

    return against


def calls(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def resolve(document: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """What a reference points to."""
    if "$ref" not in described:
        return described
    for step in described["$ref"].removeprefix("#/").split("/"):
        document = document[step]
    return document


# -- The document ----------------------------------------------------------------------------------------------------


def test_it_is_valid_openapi(document: dict[str, Any]) -> None:
    validate(document)
    assert document["openapi"].startswith("3.1.")


async def test_it_is_served_to_everyone(client: Client, document: dict[str, Any]) -> None:
    answer = await client.get("/openapi.json")
    assert answer.status == 200
    assert await answer.json() == document


def test_every_route_and_nothing_else_is_in_it(document: dict[str, Any], settings: Settings) -> None:
    app = build_app(settings, database_url="postgresql://nowhere")
    served = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None}
    at = URL("http://host/openapi.json")
    described = {
        (method, at.join(URL(server["url"] + "/")).path.rstrip("/") + path)
        for method, path, operation in calls(document)
        for server in operation.get("servers", document["servers"])
    }
    assert described == served


def test_every_route_has_an_entry_and_nothing_else_has() -> None:
    assert set(openapi.CALLS) == {route.handler for route in (*routes.API, *routes.OPERATIONS)}


def test_its_urls_hold_behind_a_prefix(document: dict[str, Any]) -> None:
    at = URL("https://host/some/prefix/openapi.json")
    assert str(at.join(URL(document["servers"][2]["url"]))) == "https://host/some/prefix/api/v2/aibridge"
    assert str(at.join(URL(document["paths"]["/healthz"]["get"]["servers"][0]["url"]))) == "https://host/some/prefix/"


def test_only_what_is_outside_the_prefixes_needs_no_sign_in(document: dict[str, Any]) -> None:
    outside = {route.path for route in routes.OPERATIONS}
    for _, path, operation in calls(document):
        open_to_all = operation.get("security", document["security"]) == []
        assert open_to_all == (path in outside or path.startswith("/docs/"))
        assert ("401" in operation["responses"]) != open_to_all


def test_every_refusal_is_described(document: dict[str, Any]) -> None:
    described = {
        (name, document_status)
        for document_status, response in responses(document)
        for name in response["content"]["application/json"].get("examples", {})
        if hasattr(errors, name)
    }
    apart = {errors.UnknownPath, errors.MethodNotAllowed}  # of no call: no route leads to them
    for refusal in apart:
        assert refusal.__name__ in document["components"]["responses"]
    assert described | {(refusal.__name__, refusal.status) for refusal in apart} == {
        (refusal.__name__, refusal.status) for refusal in refusals(errors.Refusal) if refusal not in NOT_OVER_HTTP
    }


def refusals(base: type[errors.Refusal]) -> Iterator[type[errors.Refusal]]:
    for refusal in base.__subclasses__():
        yield refusal
        yield from refusals(refusal)


def responses(document: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    for _, _, operation in calls(document):
        for status, response in operation["responses"].items():
            response = resolve(document, response)
            if "application/json" in response.get("content", {}):
                yield int(status), response


# -- Its examples ----------------------------------------------------------------------------------------------------


def test_its_examples_are_valid(document: dict[str, Any], check: Callable[[Any, dict[str, Any]], None]) -> None:
    contents = [
        content
        for _, _, operation in calls(document)
        for content in operation.get("requestBody", {"content": {}})["content"].values()
    ]
    contents += [response["content"]["application/json"] for _, response in responses(document)]
    values = [
        (example["value"], content["schema"])
        for content in contents
        for example in content.get("examples", {}).values()
    ]
    values += [
        (parameter["example"], parameter["schema"])
        for _, _, operation in calls(document)
        for parameter in operation.get("parameters", ())
        if "example" in parameter
    ]
    assert len(values) > 50
    for value, schema in values:
        check(value, schema)


async def test_its_examples_succeed(
    client: Client, owner: Person, document: dict[str, Any], check: Callable[[Any, dict[str, Any]], None]
) -> None:
    sent = 0
    for method, path, operation in sorted(calls(document), key=lambda call: call[0] != "POST"):
        parameters = operation.get("parameters", ())
        base = API if "servers" not in operation else ""
        url = base + path.format_map(
            {parameter["name"]: parameter.get("example") for parameter in parameters if parameter["in"] == "path"}
        )
        query = {
            parameter["name"]: parameter["example"]
            for parameter in parameters
            if parameter["in"] == "query" and "example" in parameter
        }
        bodies = [
            (media_type, example["value"])
            for media_type, content in operation.get("requestBody", {"content": {}})["content"].items()
            for example in content["examples"].values()
        ] or [(None, None)]
        for media_type, body in bodies:
            answer = await client.request(
                method,
                url,
                params=query,
                data=body if body is None or isinstance(body, str) else json.dumps(body),
                headers=owner.headers | ({"Content-Type": media_type} if media_type else {}),
            )
            assert answer.status in (200, 201), (url, await answer.text())
            response = resolve(document, operation["responses"][str(answer.status)])
            for name, header in response["headers"].items():
                header = resolve(document, header)
                assert name in answer.headers or not header.get("required"), (url, name)
            if answer.content_type in response["content"]:
                text = await answer.text()
                value = json.loads(text) if answer.content_type == "application/json" else text
                check(value, response["content"][answer.content_type]["schema"])
            else:
                [wildcard] = response["content"]
                assert answer.content_type.startswith(wildcard.removesuffix("*"))
            sent += 1
    assert sent > 20
    page = await (await client.get(f"{API}/interceptions", headers=owner.headers)).json()
    assert {result["id"] for result in page["results"]} == {examples.RUNNING_ID, examples.FINISHED_ID}


# -- Real answers ----------------------------------------------------------------------------------------------------

NESTED: dict[str, Any] = {
    "initiator": {"id": str(uuid4()), "username": "ida", "name": "Ida", "avatar_url": "https://example.com/ida.png"},
    "metadata": {"nested": {"list": [1, 2.5, None, "text"]}},
    "token_usages": [examples.TOKEN_USAGE, examples.TOKEN_USAGE],
    "user_prompts": [examples.USER_PROMPT],
    "tool_usages": [examples.TOOL_USAGE | {"server_url": None}],
}


@pytest.fixture
def hold(document: dict[str, Any], check: Callable[[Any, dict[str, Any]], None]) -> Callable[[Any, type[Schema]], None]:
    """Hold an answer against its schema, in both forms: all that is described, and nothing else."""

    def against(value: Any, schema: type[Schema]) -> None:
        schema().load(value)
        check(value, document["components"]["schemas"][schema.__name__])

    return against


async def test_interceptions_are_as_described(
    client: Client, owner: Person, record: Record, hold: Callable[[Any, type[Schema]], None]
) -> None:
    body = interception(**NESTED)
    del body["initiator_id"]
    answer = await client.post(f"{API}/interceptions", json=body, headers=owner.headers)
    assert answer.status == 201, await answer.text()
    hold(await answer.json(), answers.Interception)
    await record(client=None, initiator_id=str(uuid4()))  # with nothing in it, by a user who has no row
    running = interception()
    del running["ended_at"]
    answer = await client.post(f"{API}/interceptions", json=running, headers=owner.headers)
    hold(await answer.json(), answers.Interception)
    answer = await client.get(f"{API}/interceptions", headers=owner.headers)
    page = await answer.json()
    assert page["total"] == 2
    assert max(len(result["token_usages"]) for result in page["results"]) == 2
    hold(page, answers.InterceptionPage)


async def test_the_other_answers_are_as_described(
    client: Client, owner: Person, record: Record, hold: Callable[[Any, type[Schema]], None]
) -> None:
    found = await record()

    async def answered(method: str, path: str, **body: Any) -> Any:
        return await (await client.request(method, f"{API}{path}", headers=owner.headers, **body)).json()

    hold(
        await answered("POST", f"/interceptions/{found['id']}/user-prompts", json=[examples.USER_PROMPT]),
        answers.ChildIds,
    )
    hold(
        await answered("POST", f"/interceptions/{found['id']}/model-thoughts", json=examples.MODEL_THOUGHT),
        answers.ChildIds,
    )
    hold(await answered("GET", "/log-requests"), answers.RequestLoggingState)
    hold(await answered("POST", "/log-requests", json={"enabled": True}), answers.Response)
    state = await answered("GET", "/log-requests")
    assert state["changed_by"] == str(owner.id)
    hold(state, answers.RequestLoggingState)
    stream = "\n".join([json.dumps(interception()), json.dumps(found), "{}", "nonsense"])
    report = await answered("POST", "/interceptions/import", data=stream)
    assert (report["imported"], report["unchanged"], report["rejected_total"]) == (1, 1, 2)
    hold(report, answers.ImportReport)
    refusal = await answered("POST", "/interceptions", json={"surplus": 1})
    assert refusal["validations"]
    hold(refusal, answers.Response)
    hold(await answered("GET", "/interceptions?limit=1001"), answers.Response)
    hold(await answered("DELETE", "/interceptions"), answers.Response)


# -- The page --------------------------------------------------------------------------------------------------------


async def test_the_page_and_its_files_are_served_to_everyone(client: Client) -> None:
    page = await client.get("/docs")
    assert page.status == 200
    assert page.content_type == "text/html"
    assert page.headers["Cache-Control"] == "no-cache"
    named = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', await page.text())
    assert len(named) == 4
    answers_to = [page]
    for url in named:
        assert not url.startswith(("/", "http"))  # below a proxy's prefix too
        answer = await client.get(f"/{url}")
        assert answer.status == 200
        if url != "openapi.json":
            assert answer.headers["Cache-Control"].startswith("public, max-age=")
            answers_to.append(answer)
    for answer in answers_to:
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_the_page_holds_no_script_or_style() -> None:
    page = (resources.directory("docs_ui") / "index.html").read_text()
    assert re.findall(r"<script[^>]*>([^<]+)</script>", page) == []
    assert "<style" not in page
    assert not re.search(r"\s(?:style|on\w+)=", page)


async def test_a_file_that_the_client_has_is_not_sent_again(client: Client) -> None:
    first = await client.get("/docs/swagger-ui.css")
    again = await client.get("/docs/swagger-ui.css", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, await again.read()) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert again.headers["Cache-Control"] == first.headers["Cache-Control"]
    other = await client.get("/docs/swagger-ui.css", headers={"If-None-Match": '"of another version"'})
    assert other.status == 200


@pytest.mark.parametrize(
    "name",
    ["VERSION", "index.html", "..%2fopenapi.py", "..%2f..%2fsetup.cfg", "%2fetc%2fpasswd", "swagger-ui.css%00", ""],
)
async def test_no_other_file_is_served(client: Client, name: str) -> None:
    answer = await client.get(URL(f"/docs/{name}", encoded=True))
    assert answer.status == 404
    assert (await answer.json())["message"] == "Route not found."


def test_what_is_vendored_is_unchanged() -> None:
    folder = resources.directory("docs_ui")
    listed = {line[66:]: line[:64] for line in (folder / "VERSION").read_text().splitlines()[2:]}
    ours = {"VERSION", "index.html", "init.js"}
    assert listed.keys() | ours == {path.name for path in folder.iterdir()}
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    assert documents.ASSETS.keys() - ours <= listed.keys()
