"""The stand-in provider as a program."""

from __future__ import annotations

import argparse

from aiohttp import web

from .app import build_app


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.standin", description="A stand-in for the Anthropic and OpenAI APIs."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090)
    arguments = parser.parse_args()
    base = f"http://{arguments.host}:{arguments.port}"
    print(f"The stand-in provider serves {base}/anthropic and {base}/openai/v1", flush=True)
    web.run_app(build_app(), host=arguments.host, port=arguments.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
