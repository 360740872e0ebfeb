"""Who is asking: the client program, by its headers, and its session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from service import jsontext

UNKNOWN: Final = "Unknown"

_LONGEST_SESSION: Final = 256  # of client_session_id


@dataclass(frozen=True, slots=True)
class _Agent:
    """A client: what its User-Agent begins with in lower case, or its `originator`, or a header that only it sends."""

    name: str
    user_agent: str | None = None
    originator: str | None = None
    header: str | None = None
    session_headers: tuple[str, ...] = ()  # the first that is there

    def sent(self, headers: Mapping[str, str], *, user_agent: str, originator: str | None) -> bool:
        if self.user_agent and user_agent.startswith(self.user_agent):
            return True
        if originator is not None and originator == self.originator:
            return True
        return self.header is not None and self.header in headers


_CLAUDE_CODE: Final = _Agent("Claude Code", user_agent="claude", session_headers=("X-Claude-Code-Session-Id",))

# The first that matches is it.
_AGENTS: Final = (
    _Agent("Mux", user_agent="mux/", session_headers=("X-Mux-Workspace-Id",)),
    _CLAUDE_CODE,
    _Agent("Codex", user_agent="codex", session_headers=("session_id", "session-id")),
    _Agent("Zed", user_agent="zed/"),
    _Agent("GitHub Copilot (VS Code)", user_agent="githubcopilotchat/", session_headers=("x-interaction-id",)),
    _Agent("GitHub Copilot (CLI)", user_agent="copilot/", session_headers=("X-Client-Session-Id",)),
    _Agent("Kilo Code", user_agent="kilo-code/", originator="kilo-code", session_headers=("X-KILOCODE-TASKID",)),
    _Agent("Roo Code", user_agent="roo-code/", originator="roo-code"),
    _Agent("Coder Agents", user_agent="coder-agents/", session_headers=("X-Coder-Chat-Id",)),
    _Agent("Charm Crush", user_agent="charm crush/"),
    _Agent("Cursor", header="x-cursor-client-version"),
)


def client_of(headers: Mapping[str, str]) -> str:
    """The name of the client, `Unknown` where nothing tells it. The headers' names are found in any case."""
    agent = _agent_of(headers)
    return agent.name if agent else UNKNOWN


def session_of(headers: Mapping[str, str], body: str | None) -> str | None:
    """What the client calls its session: its header's word, or else the body's (`Question.session_id`) for Claude Code.

    None also for one that is longer than a session may be: cut short, it could be another's.
    """
    agent = _agent_of(headers)
    if agent is None:
        return None
    session = next((headers[name].strip() for name in agent.session_headers if name in headers), "")
    if not session and agent is _CLAUDE_CODE:
        session = body or ""
    # aiohttp hands on bytes of a header that are not UTF-8 as surrogates.
    session = jsontext.cleaned(session)
    return session if 0 < len(session) <= _LONGEST_SESSION else None


def _agent_of(headers: Mapping[str, str]) -> _Agent | None:
    user_agent, originator = headers.get("User-Agent", "").lower(), headers.get("originator")
    told = originator.lower() if originator else None
    return next((agent for agent in _AGENTS if agent.sent(headers, user_agent=user_agent, originator=told)), None)
