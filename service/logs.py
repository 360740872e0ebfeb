"""Structured logs on standard error: JSON, or readable where a terminal reads them. Never a token, never a prompt."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any, TextIO

import structlog

from service.settings import Settings


def configure(settings: Settings) -> None:
    """Set up structlog, and send what libraries log through it."""
    readable = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=_traceback)
        if readable
        else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    shared.append(_escape if readable else structlog.processors.format_exc_info)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # in one piece: workers share standard error
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


def visible(text: str) -> str:
    """Text that others may have chosen, for a terminal: what would steer it, or end the line, is escaped."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def _escape(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    # JSON escapes by itself; the renderer for people writes text as it is.
    return {name: visible(value) if isinstance(value, str) else value for name, value in event.items()}


def _traceback(out: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    """A traceback for people: without local variables, which hold tokens, passwords and prompts."""
    collected = io.StringIO()
    structlog.dev.plain_traceback(collected, exc_info)
    # Indented, so that no line of a message passes for an event of its own.
    out.write("".join(f"\n    {visible(line)}" for line in collected.getvalue().strip().split("\n")))
