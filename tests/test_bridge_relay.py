"""The relay: what a client gets, what the provider got, and what is recorded of it."""

from __future__ import annotations

import hashlib

import pytest
from aiohttp.test_utils import TestServer
from bridging import WAYS, Bridged, Way
from standin.app import EXCHANGES


def way(one: Way) -> str:
    return one.name


@pytest.mark.parametrize("protocol", WAYS, ids=way)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_an_answer_is_the_providers_and_is_recorded(
    bridge: Bridged, provider: TestServer, protocol: Way, *, stream: bool
) -> None:
    async with bridge.ask(protocol, "standin-thinking+tools+cached", stream=stream) as response:
        body = await response.read()
        assert response.status == 200, body
    [exchange] = provider.app[EXCHANGES]
    assert hashlib.sha256(body).hexdigest() == exchange.sha256_without_usage
    [row] = await bridge.recorded()
    assert row["metadata"]["status"] == "completed"
    assert [prompt["prompt"] for prompt in row["user_prompts"]] == ["How are you?"]
    assert len(row["token_usages"]) == 1
    assert len(row["tool_usages"]) == 2
