"""A local platform for the tests of this folder: real HTTP, real SQLite. Each test makes agents of its own in it."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from prefactor_trace import _ids
from prefactor_trace._local import Destination
from prefactor_trace.server import LocalPlatform

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

SCHEMA = {
    "external_identifier": "schema-1",
    "span_type_schemas": [
        {
            "name": "test:llm",
            "title": "LLM call",
            "params_schema": {"type": "object", "properties": {"model": {"type": "string"}}},
            "result_schema": {"type": "object"},
            "template": "{{model}}",
            "data_risk": {
                "action_profile": {"read_data": "allowed"},
                "params_data_categories": {"classification": "secret"},
                "result_data_categories": {},
            },
        }
    ],
    "quality_schemas": [{"name": "verdict", "schema": {"type": "object"}}],
}

_numbers = itertools.count()


class Api:
    """The platform's API, spoken plainly. Every answer must be a JSON object with the status that is expected."""

    def __init__(self, platform: LocalPlatform | Destination) -> None:
        self.platform = platform
        self.http = httpx.Client(
            base_url=f"{platform.url}/api/v1/",
            headers={"Authorization": f"Bearer {platform.token}"},
            trust_env=False,
            timeout=30,
        )
        self.account = self.get("account")["summaries"][0]
        self.partition = _ids.partition_of(self.account["id"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def call(self, method: str, path: str, status: int = 200, **options: Any) -> dict[str, Any]:
        response = self.http.request(method, path, **options)
        body = response.json()
        assert (status, dict) == (response.status_code, type(body)), response.text
        assert body["status"] == ("success" if status == 200 else "error")
        return body

    def get(self, path: str, status: int = 200, **params: Any) -> dict[str, Any]:
        return self.call("GET", path, status, params=params)

    def post(self, path: str, body: Any = None, status: int = 200) -> dict[str, Any]:
        return self.call("POST", path, status, json={} if body is None else body)

    def new_id(self) -> str:
        return _ids.generate(self.partition)

    def new_name(self) -> str:
        return f"agent-{next(_numbers)}"

    def registration(self, **fields: Any) -> dict[str, Any]:
        version = {"name": self.new_name(), "external_identifier": "1.0"}
        return {"agent_version": version, "agent_schema_version": SCHEMA, **fields}

    def register(self, **fields: Any) -> dict[str, Any]:
        return self.post("agent_instance/register", self.registration(**fields))["details"]

    def run(self, **fields: Any) -> str:
        """Register and start an instance; return its id."""
        instance_id = self.register(**fields)["id"]
        self.post(f"agent_instance/{instance_id}/start")
        return instance_id

    def details(self, instance_id: str, **fields: Any) -> dict[str, Any]:
        """Return what a span create says about the span."""
        return {
            "agent_instance_id": instance_id,
            "schema_name": "test:llm",
            "status": "active",
            "payload": {"model": "m"},
            **fields,
        }

    def span(self, instance_id: str, status: int = 200, **fields: Any) -> dict[str, Any]:
        """Create a span and return the whole answer."""
        return self.post("agent_spans", {"details": self.details(instance_id, **fields)}, status)

    def spans(self, instance_id: str) -> list[dict[str, Any]]:
        return self.get("agent_spans", agent_instance_id=instance_id)["summaries"]

    def bulk(self, *items: dict[str, Any], status: int = 200) -> dict[str, Any]:
        return self.post("bulk", {"items": list(items)}, status)


@pytest.fixture(scope="session")
def api(tmp_path_factory):
    """One platform for all tests."""
    with LocalPlatform(tmp_path_factory.mktemp("platform") / "db.sqlite3") as platform, Api(platform) as api:
        yield api


@pytest.fixture
def speak():
    """Return what opens an Api to a platform of the test's own, for a block."""
    return Api


class Served(NamedTuple):
    """A `prefactor-trace serve` of its own process. *said*: what it has printed so far."""

    process: subprocess.Popen[str]
    state_dir: Path
    viewer_url: str
    said: str

    @property
    def destination(self) -> Destination:
        url, token = self.viewer_url.split("/?token=")
        return Destination(url, token)


@pytest.fixture
def serve(tmp_path):
    """Return what starts `prefactor-trace serve` and waits until it has said where it is; stopped at the end."""
    processes = []

    def start(db: Path | None) -> Served:
        state_dir = tmp_path / f"state-{len(processes)}"
        process = subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-W",
                    "error::ResourceWarning",
                    "-c",
                    "from prefactor_trace.cli import main; main()",
                ),
                *("serve", "--port", "0"),
                *(() if db is None else ("--db", str(db))),
            ],
            env=os.environ | {"PREFACTOR_STATE_DIR": str(state_dir)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        said = ""
        while "Ctrl+C" not in said:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said += line
        return Served(process, state_dir, re.search(r"http://\S+", said).group(), said)

    yield start
    for process in processes:
        process.kill()
        process.communicate(timeout=10)
