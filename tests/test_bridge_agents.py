"""Claude Code and Codex themselves, led through a turn with a tool call by the stand-in behind the bridge.

They come from npm, by `make agents` into `.agents`, or from wherever the PATH finds them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from bridging import API, KEY, OPENAI_KEY, Bridged
from standin.app import EXCHANGES

INSTALLED = Path(__file__).resolve().parent.parent / ".agents" / "node_modules" / ".bin"


async def run(home: Path, *command: str, environment: Mapping[str, str]) -> str:
    """What an agent says, in a home and a project of its own, with nothing of this process's environment but its PATH."""
    program = shutil.which(command[0], path=f"{INSTALLED}:{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"{command[0]} is not installed here: make agents")
    project = home / "project"
    project.mkdir()
    process = await asyncio.create_subprocess_exec(
        program,
        *command[1:],
        cwd=project,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "NO_PROXY": "127.0.0.1", **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(120):
        output, _ = await process.communicate()
    said = output.decode(errors="replace")
    assert process.returncode == 0, said
    return said


async def test_claude_code(bridge: Bridged, provider: TestServer, tmp_path: Path) -> None:
    prompt = 'Please call Bash {"command": "echo it-was-run > made-by-the-agent"}'
    said = await run(
        tmp_path,
        *("claude", "-p", prompt, "--model", "standin-thinking+cached", "--allowedTools", "Bash"),
        environment={
            "ANTHROPIC_BASE_URL": f"{bridge.url}{API}/anthropic",
            "ANTHROPIC_AUTH_TOKEN": bridge.token,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    )
    assert "You asked:" in said
    assert (tmp_path / "project" / "made-by-the-agent").read_text(encoding="utf-8") == "it-was-run\n"
    asked, answered = await bridge.recorded(2)
    assert {(row["client"], row["model"], row["provider"]) for row in (asked, answered)} == {
        ("Claude Code", "standin-thinking+cached", "anthropic")
    }
    assert [[one["prompt"] for one in row["user_prompts"]] for row in (asked, answered)] == [[prompt], []]
    assert [[one["tool"] for one in row["tool_usages"]] for row in (asked, answered)] == [["Bash"], []]
    assert answered["thread_parent_id"] == answered["thread_root_id"] == asked["id"]
    assert asked["client_session_id"] == answered["client_session_id"] is not None
    for row in (asked, answered):
        assert row["metadata"]["status"] == "completed"
        [usage] = row["token_usages"]
        assert usage["cache_read_input_tokens"] > 1_024
        assert usage["cache_write_input_tokens"] == 256
        assert row["model_thoughts"][0]["metadata"] == {"source": "thinking"}
    for exchange in provider.app[EXCHANGES]:
        assert bridge.token not in str(exchange.headers)
        assert exchange.headers["x-api-key"] == [KEY]


async def test_codex(bridge: Bridged, provider: TestServer, tmp_path: Path) -> None:
    settings = tmp_path / ".codex" / "config.toml"
    settings.parent.mkdir()
    settings.write_text(
        f"""
        model_provider = "bridgelog"

        [model_providers.bridgelog]
        name = "bridgelog"
        base_url = "{bridge.url}{API}/openai/v1"
        env_key = "BRIDGE_TOKEN"
        wire_api = "responses"
        """,
        encoding="utf-8",
    )
    prompt = 'Please call exec_command {"cmd": "echo it-was-run"}'
    said = await run(
        tmp_path,
        *("codex", "exec", "--skip-git-repo-check", "-m", "standin-thinking+cached", prompt),
        environment={"BRIDGE_TOKEN": bridge.token},
    )
    assert "it-was-run" in said
    asked, answered = await bridge.recorded(2)
    assert {(row["client"], row["model"], row["provider"]) for row in (asked, answered)} == {
        ("Codex", "standin-thinking+cached", "openai")
    }
    assert [[one["prompt"] for one in row["user_prompts"]] for row in (asked, answered)] == [[prompt], []]
    assert [[one["tool"] for one in row["tool_usages"]] for row in (asked, answered)] == [["exec_command"], []]
    assert answered["thread_parent_id"] == answered["thread_root_id"] == asked["id"]
    assert asked["client_session_id"] == answered["client_session_id"] is not None
    for row in (asked, answered):
        assert row["metadata"]["status"] == "completed"
        [usage] = row["token_usages"]
        assert usage["cache_read_input_tokens"] > 1_024
        assert {one["metadata"]["source"] for one in row["model_thoughts"]} == {"reasoning_summary", "commentary"}
    for exchange in provider.app[EXCHANGES]:
        assert bridge.token not in str(exchange.headers)
        assert exchange.headers["authorization"] == [f"Bearer {OPENAI_KEY}"]
