"""A process that records as the bridge does, for tests that kill it: `python tests/bridge_worker.py URL SPOOL COUNT HELD`.

It starts COUNT interceptions, observes and ends them, many at once, and tells on standard output what it was promised:
`started ID`, and `ended ID STATUS` once `end` has returned. The last HELD of them it goes on serving.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

from conftest import SETTINGS

from service import db, statements
from service.bridge.protocols import Observed, Thought, ToolCall, Usage
from service.bridge.recorder import Recorder
from service.bridge.running import Beginning, Running
from service.metrics import Metrics

AT_ONCE = 50


def beginning(number: int, **changes: object) -> Beginning:
    """A request, whose number is in its model, prompt and metadata."""
    return replace(
        Beginning(
            initiator_id=UUID(int=7),
            token_id="0123456789",
            provider="anthropic",
            provider_name="anthropic",
            model=f"model-{number}",
            client="Claude Code",
            session_id=None,
            answers_tool_call=None,
            prompt=f"prompt {number}",
            metadata={"number": number},
            started_at=datetime.now(UTC),
        ),
        **changes,  # type: ignore[arg-type]  # whatever the test says
    )


def observed(number: int) -> Observed:
    """What an answer used: as many output tokens as its number."""
    return Observed(
        response_id=f"response-{number}",
        usage=Usage(input_tokens=1, output_tokens=number, metadata={"service_tier": "standard"}),
        tools=[ToolCall(call_id=f"call-{uuid4()}", tool="shell", input='{"command": "ls"}')],
        thoughts=[Thought(content=f"thought {number}")],
        complete=True,
    )


def status(number: int) -> str:
    """How it ends."""
    return ("completed", "failed", "cancelled")[number % 3]


async def main(url: str, spool: str, count: int, held: int) -> None:
    """Record until all is done, then serve what is held until killed."""
    settings = replace(SETTINGS, spool_dir=Path(spool))
    database = await db.connect(settings, url, statements.load())
    recorder = await Recorder.open(database, settings=settings, metrics=Metrics(pool_size=settings.pool_size))
    slots = asyncio.Semaphore(AT_ONCE)

    async def serve(number: int) -> Running:
        async with slots:
            running = await recorder.start(beginning(number))
            _say(f"started {running.id}")
            running.observe(observed(number))
            await asyncio.sleep(0)
            if number < count - held:
                running.end(status=status(number), detail={"ended": number})
                _say(f"ended {running.id} {status(number)} {number}")
            return running

    kept = await asyncio.gather(*(serve(number) for number in range(count)))
    _say("done")
    await asyncio.sleep(3600)
    del kept


def _say(line: str) -> None:
    # At once and whole, whatever becomes of this process.
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
