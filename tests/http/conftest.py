"""One local platform, and those who speak to it over real HTTP: our client on two event loops, and the official one.

A test that asks for `client` is run for all three, with the same assertions; one that asks for `ours` is about what
only our client has. Each test makes agents of its own, so one platform is enough.
"""

from __future__ import annotations

import importlib
import itertools
import json
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import httpx
import pytest
from hostile_server import HostileServer, Received, answering, response

from prefactor_trace import _ids
from prefactor_trace.server import LocalPlatform

if TYPE_CHECKING:
    from types import ModuleType

    from prefactor_trace.http import PrefactorHttpClient

VERSION = {"name": "Tested", "external_identifier": "v1"}
SCHEMA = {
    "external_identifier": "s1",
    "span_type_schemas": [{"name": "test:llm", "params_schema": {"type": "object"}, "title": "LLM call"}],
    "quality_schemas": [{"name": "verdict", "schema": {"type": "object"}}, {"name": "tone", "schema": {}}],
}

_numbers = itertools.count()


class Speaker(NamedTuple):
    """A client package, and the event loop it is run on."""

    name: str
    package: str
    backend: str

    def module(self, name: str) -> ModuleType:
        """Return a module of the package; both have the same ones."""
        return importlib.import_module(f"{self.package}.{name}")

    def client(self, url: str, token: str, **settings: Any) -> PrefactorHttpClient:
        """Return a client that does not wait long before it tries again."""
        config = self.module("config").HttpClientConfig(
            url, token, **{"initial_retry_delay": 0.001, "max_retry_delay": 0.002, **settings}
        )
        return self.module("client").PrefactorHttpClient(config)


_OURS = [
    Speaker("ours-asyncio", "prefactor_trace.http", "asyncio"),
    Speaker("ours-trio", "prefactor_trace.http", "trio"),
]
_OFFICIAL = Speaker("official", "prefactor_http", "asyncio")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let everybody speak, unless the test is about our client alone."""
    if "speaker" in metafunc.fixturenames:
        speakers = _OURS if "ours" in metafunc.fixturenames else [*_OURS, _OFFICIAL]
        metafunc.parametrize("speaker", speakers, ids=[each.name for each in speakers], indirect=True)


class Ground:
    """What the tests stand on.

    Attributes:
        url: Where the platform is.
        token: What it wants.
        store: What it knows, asked without HTTP.
        version: An agent version to register with.
        schema: A schema version to register with.
    """

    def __init__(self, platform: LocalPlatform) -> None:
        self.url = platform.url
        self.token = platform.token
        self.store = platform.store
        self.version = VERSION
        self.schema = SCHEMA

    def new_id(self) -> str:
        return _ids.generate(self.store.account.partition)

    def new_key(self) -> str:
        return str(uuid4())

    def new_name(self) -> str:
        return f"name-{next(_numbers)}"

    async def register(self, client: PrefactorHttpClient, agent_id: str | None = None, **fields: Any) -> Any:
        """Register an instance, of an agent of its own unless one is named, in words that all clients know."""
        return await client.agent_instances.register(
            agent_id=agent_id or self.new_id(),
            agent_version=self.version,
            agent_schema_version=self.schema,
            **fields,
        )

    async def run(self, client: PrefactorHttpClient) -> str:
        """Register and start an instance; return its id."""
        instance = await self.register(client)
        await client.agent_instances.start(instance.id)
        return instance.id


@pytest.fixture(scope="session")
def ground(tmp_path_factory):
    with LocalPlatform(tmp_path_factory.mktemp("platform") / "db.sqlite3") as platform:
        yield Ground(platform)


@pytest.fixture
def speaker(request):
    pytest.importorskip(request.param.package)
    return request.param


@pytest.fixture
def anyio_backend(speaker):
    return speaker.backend


@pytest.fixture
async def client(speaker, ground):
    """Return an open client of each kind."""
    async with speaker.client(ground.url, ground.token) as client:
        yield client


@pytest.fixture
def ours(client):
    """Return an open client of our own."""
    return client


@pytest.fixture
def models(speaker):
    """Return the modules with the models of the package under test, by their last name."""
    return lambda name: speaker.module(f"models.{name}")


@pytest.fixture
def errors(speaker):
    """Return the exceptions of the package under test."""
    return speaker.module("exceptions")


class Line:
    """A line to the platform that loses answers: what is asked is done, but the first answer to each body is 503.

    Attributes:
        url: Its address.
        requests: What came in.
    """

    def __init__(self, server: HostileServer) -> None:
        self.url = server.url
        self.requests: list[Received] = server.requests

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.body) for request in self.requests]


@pytest.fixture
def line(ground):
    seen: set[tuple[str, str, bytes]] = set()

    def forward(request: Received) -> bytes:
        headers = {name: request.headers[name] for name in ("authorization", "content-type")}
        with httpx.Client(trust_env=False) as http:
            url = ground.url + request.target
            answer = http.request(request.method, url, content=request.body, headers=headers)
        this = (request.method, request.target, request.body)
        if this in seen:
            return response(answer.status_code, answer.content)
        seen.add(this)
        return response(503, b'{"status": "error", "code": "unavailable", "message": "not now"}')

    with HostileServer(answering(forward)) as server:
        yield Line(server)
