"""Callers for container-test: they read and record until SIGTERM, and tell what failed and what was acknowledged."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from uuid import UUID

from conftest import Person
from fleet import Load


def main(port: str, token: str, folder: str) -> None:
    """Load the port; the ids and prompts that were acknowledged go to files in the folder, one a line."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with Load(int(port), Person(UUID(int=0), "", token)) as load:
        ended.wait()
    ledger = load.ledger
    Path(folder, "interceptions").write_text("".join(f"{one}\n" for one in sorted(ledger.acknowledged)), "utf-8")
    Path(folder, "prompts").write_text("".join(f"{one}\n" for one in sorted(ledger.prompts)), "utf-8")
    answered = {method: ledger.done[method] for method in ("GET", "POST")}
    sys.stdout.write(json.dumps({"answered": answered, "failed": len(ledger.failed)}) + "\n")
    for failed in ledger.failed[:10]:
        sys.stdout.write(f"{failed}\n")
    sys.exit(1 if ledger.failed else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
