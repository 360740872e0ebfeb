"""schemathesis takes the OpenAPI document at its word: it makes up requests, valid and invalid, and judges the answers."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import schemathesis
from aiohttp import ClientSession, web
from conftest import Person
from hypothesis import HealthCheck
from hypothesis import settings as bounded
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.config import SchemathesisConfig

from service import openapi, routes
from service.app import build_app
from service.connections import Connections
from service.context import HELD, SETTINGS
from service.identifiers import parse_uuid
from service.schemas import examples
from service.server import Site, bind, port_of
from service.settings import Settings

Case = schemathesis.Case[Any]

load_all_checks()
document = schemathesis.openapi.from_dict(
    openapi.document(),
    config=SchemathesisConfig.from_dict(
        {
            "generation": {
                # That metadata cannot hold U+0000, at any depth, is told in prose.
                "allow-x00": False,
                # The owner's token stands in the header that comes first: credentials in others are not looked at.
                "with-security-parameters": False,
            },
            "checks": {
                # 431: a query that is as long as allowed may, percent-encoded, be longer than a request line may be.
                "positive_data_acceptance": {"expected-statuses": ["2xx", "404", "409", "431"]},
                "negative_data_rejection": {"expected-statuses": ["400", "404", "431"]},
            },
            "phases": {"coverage": {"generate-duplicate-query-parameters": True}},
            "output": {"sanitization": {"enabled": False}},
        }
    ),
)

# What a body is refused for that is valid by its schema: how its members relate, to each other or to what is stored.
RELATIONS = {
    "ended_at": "must not be before started_at",
    "initiator.id": "must equal initiator_id where both are given",
    "interception_id": "must be the id of the interception",
}
# Formats know no bounds: only in its own time zone is 0001-01-01T00:00:00+01:00 an instant of the year 1.
YEAR_IN_UTC = ": year out of range"
# Likewise a query: the search language is no JSON Schema, and users and interceptions have to exist.
QUERY_REFUSALS = {
    "Invalid clients search query.",
    "Invalid interceptions search query.",
    "Invalid models search query.",
    "Invalid pagination cursor.",
}
ONE_MODE_ONLY = "Cannot use both after_id and offset pagination in the same request."


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx: schemathesis.SerializationContext, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture
def live_url(database_url: str, settings: Settings, owner: Person) -> Iterator[str]:
    """The service with one interception, in a thread of its own: schemathesis sends its requests from the test's."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(build_app(settings, database_url=database_url), access_log=None)

    async def start() -> str:
        await runner.setup()
        sockets = bind("127.0.0.1", 0)
        await Site(runner, sockets[0], bounds=Connections(runner.app[SETTINGS], runner.app[HELD])).start()
        url = f"http://127.0.0.1:{port_of(sockets)}"
        async with ClientSession(url, headers=owner.headers) as session:
            recorded = await session.post(f"{routes.PREFIXES[0]}/interceptions", json=examples.RUNNING)
            assert recorded.status == 201, await recorded.text()
        return url

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


def keeps_to_the_document(operation_id: str) -> Callable[..., None]:
    """The test of one call. Its requests share a service, since no promise depends on what was sent before."""

    @document.include(operation_id=operation_id).parametrize()
    @bounded(
        max_examples=20, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test(case: Case, live_url: str, owner: Person) -> None:
        if is_uuid(case.path_parameters.get("interception_id")):
            case.path_parameters["interception_id"] = examples.RUNNING_ID  # one that is made up would be unknown
        case.body = related(case.body, interception_id=examples.RUNNING_ID)
        base_url = live_url if "servers" in case.operation.definition.raw else live_url + routes.PREFIXES[0]
        response = case.call(base_url=base_url, headers=owner.headers)
        case.validate_response(
            response,
            headers=owner.headers,
            excluded_checks=list(excused_checks(case, response)),
            transport_kwargs={"base_url": base_url},
        )

    found: Callable[..., None] = test
    return found


# A function for each call: parameters of one function would share its node id, and workers run a node id once.
for route in (*routes.API, *routes.OPERATIONS):
    name = route.handler.__name__
    globals()[f"test_{name}_keeps_to_the_document"] = keeps_to_the_document(name)


def excused_checks(case: Case, response: schemathesis.Response) -> Iterator[Any]:
    """The checks that an answer need not pass, for reasons that the document tells, though not in a schema."""
    if response.status_code == 400 and is_refused_for_relations(response.json()):
        yield CHECKS.get_one("positive_data_acceptance")
    if response.status_code == 200 and case.method == "GET" and is_valid_query(case, str(response.request.url)):
        yield CHECKS.get_one("negative_data_rejection")
    if response.status_code == 200 and case.path == "/interceptions/import":
        report = response.json()
        # What is invalid is rejected in the report. An empty stream is none, and of lines the schema says nothing.
        if report["rejected_total"] or not response.request.body or case.media_type != "application/json":
            yield CHECKS.get_one("negative_data_rejection")


def is_refused_for_relations(refusal: dict[str, Any]) -> bool:
    if refusal["message"] in QUERY_REFUSALS or refusal.get("detail") == ONE_MODE_ONLY:
        return True
    return bool(refusal.get("validations")) and all(
        wrong["detail"].endswith(YEAR_IN_UTC)
        or any(
            f".{wrong['field']}".endswith(f".{field}") and wrong["detail"].startswith(detail)
            for field, detail in RELATIONS.items()
        )
        for wrong in refusal["validations"]
    )


def is_valid_query(case: Case, url: str) -> bool:
    """Whether a query that was made up to be wrong is right as text, in which an object may be empty and 5 a string.

    What is not known is ignored.
    """
    sent = parse_qs(urlsplit(url).query, keep_blank_values=True)
    return all(
        len(sent[parameter.name]) == 1 and is_valid_text(sent[parameter.name][0], parameter.definition["schema"])
        for parameter in case.operation.query
        if parameter.name in sent
    )


def is_valid_text(text: str, schema: dict[str, Any]) -> bool:
    if schema["type"] == "integer" and text:
        return bool(re.fullmatch(r"\+?[0-9]+", text)) and schema["minimum"] <= int(text) <= schema["maximum"]
    if schema.get("format") == "uuid" and text:
        return is_uuid(text)
    return len(text) <= int(schema.get("maxLength", 0))


def related(value: Any, *, interception_id: object) -> Any:
    """A body as it was made up, save for what no schema can tell and what would have nearly every body refused.

    An `interception_id` is that of the interception around it or in the path, and `initiator_id` that of the initiator. An
    integer is written as such: to JSON Schema 1.0 is one too.
    """
    if isinstance(value, list):
        return [related(element, interception_id=interception_id) for element in value]
    if isinstance(value, dict):
        if "started_at" in value:
            interception_id = value.get("id")
            initiator = value.get("initiator")
            if isinstance(initiator, dict) and is_uuid(initiator.get("id")) and is_uuid(value.get("initiator_id")):
                value = value | {"initiator_id": initiator["id"]}
        if is_uuid(value.get("interception_id")):
            value = {name: member for name, member in value.items() if name != "interception_id"}
            if is_uuid(interception_id):
                value["interception_id"] = interception_id
        return {name: related(member, interception_id=interception_id) for name, member in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_uuid(value: object) -> bool:
    return isinstance(value, str) and parse_uuid(value) is not None
