"""Load on a deployment of bridgelog, in proportions like an auditor's and a gateway's. See docs/load-test.md.

    LOAD_TOKEN=… locust -f deploy/load/locustfile.py --headless

The environment:

    LOAD_TOKEN           the token that reads: an owner's or an auditor's for everything, a member's for their own
    LOAD_RECORDER_TOKEN  the token that records; without it nothing is recorded
    LOAD_RECORDS         at most this many interceptions are recorded, 1,000 by default: they stay
    LOAD_SECONDS         the load ends after so long whatever locust was told, 600 by default
"""

import os
import random
import sys
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import gevent
from locust import HttpUser, between, events, task
from locust.env import Environment

if not os.environ.get("LOAD_TOKEN"):
    sys.exit("LOAD_TOKEN is missing: bridgelog tokens create USERNAME prints one")

API = "/api/v2/aibridge"
PAGE = 25
SECONDS = float(os.environ.get("LOAD_SECONDS", "600"))
# Who has recorded what this leaves behind: one provider instance, and twenty people who are nobody.
MARK = "load-test"
PEOPLE = [str(uuid.uuid5(uuid.NAMESPACE_URL, f"{MARK} {number}")) for number in range(20)]


class _Allowance:
    left = int(os.environ.get("LOAD_RECORDS", "1000"))


class _Visitor(HttpUser):
    abstract = True
    host = "http://127.0.0.1:8080"
    token_variable = ""

    def on_start(self) -> None:
        self.client.headers["Coder-Session-Token"] = os.environ[self.token_variable]

    def fetch(self, path: str, *, name: str, **parameters: Any) -> Any:
        """The answer's JSON; None where it is none, which locust counts as a failure."""
        with self.client.get(f"{API}/{path}", params=parameters, name=name, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code} {response.text[:200]}")
                return None
            return response.json()


class Auditor(_Visitor):
    """Reads: mostly first pages and searches, now and then a page from deep down."""

    token_variable = "LOAD_TOKEN"
    wait_time = between(0.1, 1.0)
    weight = 3

    def on_start(self) -> None:
        super().on_start()
        self.total = 0
        self.models: list[str] = []
        self.clients: list[str] = []

    @task(5)
    def browse(self) -> None:
        """The first page, and the one after it."""
        page = self.fetch("interceptions", name="browse: first page", limit=PAGE)
        if page is None or not page["results"]:
            return
        self.total = page["total"]
        last = page["results"][-1]["id"]
        self.fetch("interceptions", name="browse: next page, by cursor", limit=PAGE, after_id=last)

    @task(2)
    def page_deep(self) -> None:
        """Any page."""
        self.fetch("interceptions", name="page deep", limit=PAGE, offset=random.randrange(max(1, self.total)))

    @task(4)
    def search(self) -> None:
        """What one model or client did, or everybody in some weeks."""
        if not self.models:
            self.models = self.fetch("models", name="models") or []
            self.clients = self.fetch("clients", name="clients") or []
        since = datetime.now(UTC) - timedelta(days=random.choice((7, 30, 90)), minutes=random.randrange(60))
        queries = [f'started_after:"{since:%Y-%m-%dT%H:%M:%SZ}"']
        queries += [f'{key}:"{random.choice(names)}"' for key, names in self._names() if names]
        self.fetch("interceptions", name="search", limit=PAGE, q=random.choice(queries))

    def _names(self) -> list[tuple[str, list[str]]]:
        # a name with a quotation mark or a colon would need escaping, and is left out
        return [
            (key, [name for name in names if not set(name) & set('":')])
            for key, names in (("model", self.models), ("client", self.clients))
        ]


if os.environ.get("LOAD_RECORDER_TOKEN"):

    class Gateway(_Visitor):
        """Records: an interception starts, its prompt and token usage come, it ends."""

        token_variable = "LOAD_RECORDER_TOKEN"
        wait_time = between(0.05, 0.3)
        weight = 1

        @task
        def record(self) -> None:
            """One interception, in four requests."""
            if _Allowance.left <= 0:
                gevent.sleep(1)
                return
            _Allowance.left -= 1
            identifier = str(uuid.uuid4())
            one = f"{API}/interceptions/{identifier}"
            started = datetime.now(UTC)
            interception = {
                "id": identifier,
                "initiator_id": random.choice(PEOPLE),
                "provider": "anthropic",
                "provider_name": MARK,
                "model": "load-test-model",
                "client": "Claude Code",
                "started_at": _instant(started),
            }
            prompt = {"id": str(uuid.uuid4()), "provider_response_id": MARK, "prompt": "Why?", "created_at": _now()}
            self._send(f"{API}/interceptions", "record: start", interception)
            self._send(f"{one}/user-prompts", "record: prompt", prompt)
            usage = {
                "id": str(uuid.uuid4()),
                "provider_response_id": MARK,
                "input_tokens": random.randrange(100, 20_000),
                "output_tokens": random.randrange(1, 4_000),
                "created_at": _now(),
            }
            self._send(f"{one}/token-usages", "record: token usage", usage)
            self._send(f"{one}/end", "record: end", {"ended_at": _now()})

        def _send(self, path: str, name: str, body: dict[str, Any]) -> None:
            with self.client.post(path, json=body, name=name, catch_response=True) as response:
                if response.status_code not in {200, 201}:
                    response.failure(f"{response.status_code} {response.text[:200]}")


def _now() -> str:
    return _instant(datetime.now(UTC))


def _instant(instant: datetime) -> str:
    return instant.isoformat().replace("+00:00", "Z")


@events.init_command_line_parser.add_listener
def _defaults(parser: Any) -> None:
    """What the command line leaves open is small: sixteen users, one minute."""
    parser.set_defaults(num_users=16, spawn_rate=8, run_time="60s")


@events.test_start.add_listener
def _end_in_time(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    if runner is not None:
        gevent.spawn_later(SECONDS, runner.quit)
