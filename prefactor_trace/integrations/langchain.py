"""LangChain and LangGraph: chains, nodes, tools, retrievers and models, in the tree that LangChain itself keeps.

Theory of operation. What begins and ends is heard from LangChain's own callbacks: one handler, which its hook for
handlers adds to every run, in every thread. A run hangs under the one that LangChain names as its parent; if code of
the user's has opened a step in between, under that. Callbacks cannot make a step current, as begin and end come in
different contexts and tasks. So it is made current exactly where LangChain runs what is inside:

- the body of a chain, a node or a tool runs in a copy of the context that LangChain makes for it: it is set in there,
  and the copy is thrown away;
- models and retrievers run in the caller's context: the function around them is a *stage*, in which the run that it
  begins is current, and out of which nothing gets; of a stream, each step is one.

Some runs end without a callback (a tool that is cancelled): then the stage ends them, or at the latest their root.

A model's call inside, of an SDK that is recorded as well, has the tokens; otherwise they are here (see `_tap`). What
LangChain tags as hidden is not shown; what it holds hangs one level higher. On Python 3.10 asyncio cannot run a task in
a given context: there the bodies of asynchronous chains and nodes have the current step of their caller.
"""

from __future__ import annotations

import contextvars
import copy
import functools
import importlib
import inspect
import sys
from typing import TYPE_CHECKING, Any

from prefactor_trace._context import NO_RESULT, current, leave
from prefactor_trace._schema import SpanType
from prefactor_trace.errors import InstanceTerminated
from prefactor_trace.integrations._langchain_values import Answer, asked, is_a, loaded, plain
from prefactor_trace.integrations._span_types import ANY, FAILED, LIST, TEXT, model_type
from prefactor_trace.integrations._tap import Asked, Call, Tap
from prefactor_trace.integrations._values import present, some_dict, text
from prefactor_trace.spans import Span, open_quietly

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping
    from uuid import UUID

    from prefactor_trace.integrations._tap import Switch

REQUIRES = "langchain-core>=1.0,<2"
# Imported by LangChain as the first run begins, just before it looks whom to call.
MODULE = "langchain_core.tracers.context"


def _step(name: str, title: str, description: str) -> SpanType:
    template = "{{ name }}{% if message %}: {% endif %}" + FAILED
    return SpanType(name, title=title, description=description, template=template)


CHAIN = _step("langchain:chain", "LangChain chain", "A chain, a graph, or any other runnable.")
PROMPT = _step("langchain:prompt", "LangChain prompt", "A prompt that was filled in.")
PARSER = _step("langchain:parser", "LangChain parser", "A model's answer that was parsed.")
NODE = _step("langgraph:node", "LangGraph node", "A node of a graph, in one of its steps.")
TOOL = SpanType(
    "langchain:tool",
    title="LangChain tool",
    description="A tool that was called.",
    template="{{ name }}: {{ output | truncate: 160 }}{{ content | truncate: 160 }}" + FAILED,
)
RETRIEVER = SpanType(
    "langchain:retriever",
    title="LangChain retriever",
    description="Documents that were looked up.",
    template="{{ inputs.query | truncate: 160 }}: {{ documents.size }}" + FAILED,
    params_schema={"type": "object", "properties": {"query": TEXT}},
    result_schema={"type": "object", "properties": {"documents": {"type": "array", "items": ANY}}},
)
_ASKED = {"model": TEXT, "messages": LIST, "tools": LIST, "parameters": ANY}
CHAT = model_type("langchain:chat", "LangChain chat model", "A call of a chat model.", _ASKED)
LLM = model_type("langchain:llm", "LangChain model", "A call of a model that completes text.", _ASKED)
TYPES = (CHAIN, PROMPT, PARSER, NODE, TOOL, RETRIEVER, CHAT, LLM)

_BY_RUN_TYPE = {"prompt": PROMPT, "parser": PARSER}
_HIDDEN = "langsmith:hidden"
_NODE_TAG = "graph:step:"
# Tags that say where a run stands, which its place in the tree does already.
_TAGS_OF_PLACE = (_NODE_TAG, "seq:step:", "map:key:", "condition:", "branch:")
# Metadata that LangChain and LangGraph add for themselves. What is told of it stands elsewhere.
_METADATA_OF_THEIRS = ("ls_", "langgraph_", "checkpoint_", "lc_", "__")


# -- the tree ----------------------------------------------------------------------------------------------


class _Run:
    """A run of LangChain's that has begun.

    Attributes:
        scope: What hangs under the run has this as its parent: its own step; of a hidden run, the one above.
        is_hidden: Whether it has no step of its own.
        call: The same step as a call of a model, if it is one.
        has_failed: Whether a part of it could not be read.
        beside: The run under which LangChain puts what belongs under this one; see `_takes_in`.
        root: The run at the top; in `open` it has the ids of those below it that have not ended.
    """

    __slots__ = ("beside", "call", "has_failed", "id", "is_hidden", "metadata", "open", "root", "scope")

    def __init__(self, run_id: UUID, above: _Run | None, scope: Any, *, is_hidden: bool = False) -> None:
        self.id = run_id
        self.scope = scope
        self.is_hidden = is_hidden
        self.call: Call | None = None
        self.has_failed = False
        self.beside: UUID | None = None
        self.metadata: dict[str, Any] = {}
        self.open: set[UUID] = set()
        self.root: _Run = self if above is None else above.root
        if above is not None:
            self.root.open.add(run_id)

    def enter(self) -> Any:
        """Make the run current; return what `leave` takes."""
        return current.set(self.scope), _placed.set(self)

    def leave(self, entered: Any) -> None:
        """Make current again what was so before."""
        token, placed = entered
        leave(token, self.scope)
        _placed.reset(placed)

    @property
    def keeps_result(self) -> bool:
        """Whether what comes out is recorded, and not read by `call`."""
        is_plain = not self.is_hidden and self.call is None and type(self.scope) is Span
        return is_plain and self.scope.keeps_result

    def returned(self, result: Any = None) -> None:
        """End as complete. *result*: what came out, as plain data."""
        if self.is_hidden:
            return
        if self.call is not None:
            self.call.ended()
            return
        if type(self.scope) is Span:
            self.scope.set_metadata(self.metadata)
            if result is not None:
                self.scope.set_result(result)
        self.scope.returned(NO_RESULT)

    def raised(self, error: BaseException) -> None:
        """End by *error*; by one that only steers a graph, as complete."""
        if self.is_hidden:
            return
        steering = _steering(error)
        if self.call is not None:
            self.call.note(steering)
            left = issubclass(type(error), GeneratorExit)
            self.call.abandoned() if left else self.call.ended() if steering else self.call.raised(error)
            return
        if type(self.scope) is Span:
            self.scope.set_metadata({**self.metadata, **steering})
        self.scope.returned(NO_RESULT) if steering else self.scope.raised(error)


# Those that have begun and not ended. To take one out is to end it: nobody else can.
_runs: dict[UUID, _Run] = {}

# The run that was made current last in this context: what is current now is that run's step, or something inside it.
_placed: contextvars.ContextVar[_Run | None] = contextvars.ContextVar(
    "prefactor_trace_langchain_run", default=None
)


def _end(run_id: UUID, end: Callable[[_Run], None], error: BaseException | None = None) -> None:
    """End the run in this way, unless it has ended; a root ends those below it that nobody has ended.

    *error*: by which it ends.
    """
    run = _runs.pop(run_id, None)
    if run is None:
        return
    try:
        end(run)
    except Exception:
        if not run.is_hidden:
            run.scope.returned(NO_RESULT)  # better without its data than for ever open
        raise
    finally:
        run.root.open.discard(run_id)
        if run.open:
            from asyncio import CancelledError  # which LangChain has loaded, and we have not

            below = run.open.copy()
            by = (GeneratorExit if _is_left_stream(below, error) else CancelledError)("left open")
            for each in below:
                _end(each, lambda left: left.raised(by), by)


def _is_left_stream(below: set[UUID], error: BaseException | None) -> bool:
    """Say whether those are open because the consumer of a stream went away: of a chain, LangChain ends only the root."""
    if error is not None and type(error) is not GeneratorExit:
        return False
    calls = [run.call for each in below if (run := _runs.get(each)) is not None]
    return any(call is not None and not call.awaits_token for call in calls)


def _steering(error: BaseException) -> dict[str, Any]:
    """Return what an exception by which LangGraph steers says; nothing, if it is none."""
    if not is_a(error, loaded("langgraph.errors", "GraphBubbleUp")):
        return {}
    said = BaseException.__dict__["args"].__get__(error)
    return {"control_flow": type.__dict__["__name__"].__get__(type(error)), "said": plain(list(said))}


class _Callbacks:
    """What LangChain calls: mixed into its class of handlers, when that is there. Raises InstanceTerminated only."""

    run_inline = True  # in the task that runs, before it goes on
    raise_error = True  # lets InstanceTerminated out, which is to stop the agent

    def __init__(self, switch: Switch) -> None:
        self._switch = switch

    def __copy__(self) -> _Callbacks:
        return self

    def __deepcopy__(self, memo: Any) -> _Callbacks:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, ()

    # -- what begins ---------------------------------------------------------------------------------------

    def on_chain_start(self, serialized: Any, inputs: Any, **facts: Any) -> None:
        """Begin a chain, a node or a graph."""
        span_type = (
            NODE
            if _is_node(facts.get("tags") or ())
            else _BY_RUN_TYPE.get(facts.get("run_type") or "", CHAIN)
        )
        self._begin(span_type, _name(serialized, facts, "chain"), lambda: plain(inputs), facts)

    def on_tool_start(self, serialized: Any, input_str: str, **facts: Any) -> None:
        """Begin a call of a tool."""
        inputs = facts.get("inputs")
        given = input_str if inputs is None else inputs
        self._begin(TOOL, _name(serialized, facts, "tool"), lambda: plain(given), facts)

    def on_retriever_start(self, serialized: Any, query: str, **facts: Any) -> None:
        """Begin to look up documents."""
        self._begin(RETRIEVER, _name(serialized, facts, "retriever"), lambda: {"query": query}, facts)

    def on_chat_model_start(self, serialized: Any, messages: list[list[Any]], **facts: Any) -> None:
        """Begin a call of a chat model: with one list of messages, says LangChain."""

        def said() -> dict[str, Any]:
            return {"messages": plain(messages[0] if len(messages) == 1 else messages)}

        self._begin(CHAT, _name(serialized, facts, "chat model"), lambda: asked(said(), facts), facts)

    def on_llm_start(self, serialized: Any, prompts: list[str], **facts: Any) -> None:
        """Begin a call of a model that completes text."""
        said = {"prompt": prompts[0]} if len(prompts) == 1 else {"prompts": prompts}
        self._begin(LLM, _name(serialized, facts, "model"), lambda: asked(said, facts), facts)

    def _begin(
        self, span_type: SpanType, name: str, inputs: Callable[[], Any], facts: dict[str, Any]
    ) -> None:
        run_id, stage = facts["run_id"], _stage.get()
        if stage is not None and (stage.is_claimed or span_type not in stage.types):
            stage = None
        if stage is not None:
            stage.is_claimed = True
        if not self._switch.is_on or run_id in _runs:
            return
        try:
            run = self._new(span_type, name, inputs, facts)
            if run is not None:
                _runs[run_id] = run
                if stage is not None:
                    if stage.takes_in:
                        run.beside = facts.get("parent_run_id")
                    stage.run_begins(run)
        except InstanceTerminated:
            raise
        except Exception:
            self._switch.failed("a run")

    def _new(
        self, span_type: SpanType, name: str, inputs: Callable[[], Any], facts: dict[str, Any]
    ) -> _Run | None:
        above = _runs.get(facts.get("parent_run_id"))  # type: ignore[arg-type] # None is not among them
        here, placed = current.get(), _placed.get()
        if placed is not None and placed.beside is not None and placed.beside == facts.get("parent_run_id"):
            above = placed
        parent = None if above is None or (placed is above and here is not None) else above.scope
        tags = facts.get("tags") or ()
        if _HIDDEN in tags:
            scope = here if parent is None else parent
            return None if scope is None else _Run(facts["run_id"], above, scope, is_hidden=True)

        unread: list[bool] = []

        def read() -> Any:
            try:
                return inputs()
            except Exception:
                unread.append(True)
                self._switch.failed("what went into a run")
                return {}

        metadata, answer = _metadata(facts, tags), Answer(facts)  # first: what is open by now has to be ended
        scope = open_quietly(span_type, name, read, parent)
        if scope is None:
            return None
        run = _Run(facts["run_id"], above, scope)
        run.metadata = metadata
        run.has_failed = bool(unread)
        if span_type is CHAT or span_type is LLM:
            run.call = Call(scope, Asked(span_type, name, read, answer), self._switch, None)
            run.call.has_failed = run.has_failed
            run.call.note(metadata)
        return run

    # -- what ends -----------------------------------------------------------------------------------------

    def on_chain_end(self, outputs: Any, *, run_id: UUID, inputs: Any = None, **_: Any) -> None:
        """End a chain, a node or a graph. *inputs*: of a stream, what went in, which is known only now."""
        self._set_inputs(run_id, inputs)
        self._returned(run_id, outputs)

    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        """End a call of a tool."""
        self._returned(run_id, output)

    def on_retriever_end(self, documents: Any, *, run_id: UUID, **_: Any) -> None:
        """End a search for documents."""
        self._returned(run_id, {"documents": documents})

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, run_id: UUID, **_: Any) -> None:
        """Take a piece of a model's answer."""
        run = _runs.get(run_id)
        if run is not None and run.call is not None:
            run.call.add(token or chunk)

    def on_llm_end(self, response: Any, *, run_id: UUID, **_: Any) -> None:
        """End a call of a model."""
        run = _runs.get(run_id)
        if run is not None and run.call is not None:
            run.call.whole(response)
            self._returned(run_id, None)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, response: Any = None, **_: Any) -> None:
        """End a call of a model by *error*. *response*: what had come by then."""
        run = _runs.get(run_id)
        if run is not None and run.call is not None:
            if response is not None:
                run.call.whole(response)
            self._raised(run_id, error)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, inputs: Any = None, **_: Any) -> None:
        """End a chain, a node or a graph by *error*."""
        self._set_inputs(run_id, inputs)
        self._raised(run_id, error)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """End a call of a tool by *error*."""
        self._raised(run_id, error)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """End a search for documents by *error*."""
        self._raised(run_id, error)

    def _set_inputs(self, run_id: UUID, inputs: Any) -> None:
        run = _runs.get(run_id)
        if inputs is not None and run is not None and not run.is_hidden and type(run.scope) is Span:
            try:
                run.scope.set_payload(plain(inputs))
            except Exception:
                self._switch.failed("what went into a run")

    def _returned(self, run_id: UUID, outputs: Any) -> None:
        def end(run: _Run) -> None:
            result = None
            try:
                if outputs is not None and run.keeps_result:
                    result = plain(outputs)
            except Exception:
                run.has_failed = True
                self._switch.failed("what came out of a run")
            run.returned(result)
            if run.call is None and not run.has_failed:
                self._switch.succeeded()

        self._ended(run_id, end)

    def _raised(self, run_id: UUID, error: BaseException) -> None:
        self._ended(run_id, lambda run: run.raised(error), error)

    def _ended(self, run_id: UUID, end: Callable[[_Run], None], error: BaseException | None = None) -> None:
        try:
            _end(run_id, end, error)
        except Exception:
            self._switch.failed("the end of a run")


def _name(serialized: Any, facts: Mapping[str, Any], otherwise: str) -> str:
    about = some_dict(serialized)
    ids = about.get("id")
    last = ids[-1] if type(ids) is list and ids else None
    return text(facts.get("name")) or text(about.get("name")) or text(last) or otherwise


def _is_node(tags: Any) -> bool:
    return any(text(tag).startswith(_NODE_TAG) for tag in tags)


def _metadata(facts: Mapping[str, Any], tags: Any) -> dict[str, Any]:
    """Return what is told of a run beside what went in and out."""
    given = some_dict(facts.get("metadata"))
    own = {name: given[name] for name in given if not str(name).startswith(_METADATA_OF_THEIRS)}
    return {
        "run_id": str(facts["run_id"]),
        **present(
            tags=[tag for tag in tags if not text(tag).startswith(_TAGS_OF_PLACE)],
            metadata=own,
            step=given.get("langgraph_step") if _is_node(tags) else None,
            tool_call_id=facts.get("tool_call_id"),
        ),
    }


# -- where a run is current ----------------------------------------------------------------------------------


class _Stage:
    """A function of LangChain's in which the run is current that it begins; see the module's docstring.

    *types*: of the runs that it begins. *run*: the one, if it has begun already. *takes_in*: see `_takes_in`.
    """

    def __init__(
        self, types: tuple[SpanType, ...], run: _Run | None = None, *, takes_in: bool = False
    ) -> None:
        self.types = types
        self.takes_in = takes_in
        self.is_claimed = run is not None
        self._run = run
        self._entered: Any = None

    def run_begins(self, run: _Run) -> None:
        """Make *run* current, from its callback, which is called in the middle of a step of this stage."""
        self._run = run
        self._entered = run.enter()

    def enter(self) -> Any:
        """Begin the function, or a step of it; return what `leave` takes."""
        if self._run is not None:
            self._entered = self._run.enter()
            return None
        return (
            None if self.is_claimed else _stage.set(self)
        )  # the run is to begin in this step, or in a later one

    def leave(self, token: Any) -> None:
        """Make current again what was so before the step."""
        if self._run is not None:
            self._run.leave(self._entered)
        if token is not None:
            _stage.reset(token)

    def raised(self, error: BaseException) -> None:
        """End the run, if LangChain has not said how: it forgets some that are cancelled."""
        if self._run is not None and not issubclass(type(error), Exception):
            _end(self._run.id, lambda run: run.raised(error), error)


_stage: contextvars.ContextVar[_Stage | None] = contextvars.ContextVar(
    "prefactor_trace_langchain_stage", default=None
)


def _staged(function: Any, switch: Switch, stage_of: Callable[..., _Stage | None]) -> Any:
    """Return *function*, of whatever kind, as a stage. *stage_of* takes its `args` and `kwargs`."""

    def stage(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return stage_of(args, kwargs) if switch.is_on else None

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            call = stage(args, kwargs)
            if call is None:
                return await function(*args, **kwargs)
            token = call.enter()
            try:
                return await function(*args, **kwargs)
            except BaseException as error:
                call.raised(error)
                raise
            finally:
                call.leave(token)

        return coroutine
    steps = _stepwise if inspect.isgeneratorfunction(function) else _stepwise_async
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Any:
            call = stage(args, kwargs)
            inner = function(*args, **kwargs)
            return inner if call is None else steps(inner, call)

        return generator

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        call = stage(args, kwargs)
        if call is None:
            return function(*args, **kwargs)
        token = call.enter()
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            call.raised(error)
            raise
        finally:
            call.leave(token)

    return called


def _stepwise(inner: Generator[Any, Any, Any], stage: _Stage) -> Generator[Any, Any, Any]:
    """Pass through everything that *inner* gives and is given; each step of it is one of *stage*."""
    value: Any = None
    step = inner.send
    try:
        while True:
            token = stage.enter()
            try:
                item = step(value)
            finally:
                stage.leave(token)
            try:
                step, value = inner.send, (yield item)
            except GeneratorExit:
                inner.close()
                raise
            except BaseException as error:
                step, value = inner.throw, error
    except StopIteration as stop:
        return stop.value
    except BaseException as error:
        stage.raised(error)
        raise


async def _stepwise_async(inner: AsyncGenerator[Any, Any], stage: _Stage) -> AsyncGenerator[Any, Any]:
    """Pass through everything that *inner* gives and is given; each step of it is one of *stage*."""
    # The event loop is not told of *inner*: as it ends, it would close that at the same time as this one does.
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    step = inner.__anext__()
    sys.set_asyncgen_hooks(*hooks)
    try:
        while True:
            token = stage.enter()
            try:
                item = await step
            finally:
                stage.leave(token)
            try:
                step = inner.asend((yield item))
            except GeneratorExit:
                await inner.aclose()
                raise
            except BaseException as error:
                step = inner.athrow(error)
    except StopAsyncIteration:
        return
    except BaseException as error:
        stage.raised(error)
        raise


def _begins(*types: SpanType) -> Callable[[Any, Switch], Any]:
    """Return what makes a stage of a function that begins a run of one of *types*."""
    return lambda function, switch: _staged(function, switch, lambda *_: _Stage(types))


def _takes_in(function: Any, switch: Switch) -> Any:
    """Make a stage of a function of a runnable with fallbacks, under which hang those that it tries.

    LangChain gives them the same parent that it has itself.
    """
    return _staged(function, switch, lambda *_: _Stage((CHAIN,), takes_in=True))


def _has_begun(function: Any, switch: Switch) -> Any:
    """Make a stage of a function of a model that is given the run, or the runs, as begun already."""

    def stage_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Stage | None:
        manager = args[3] if len(args) > 3 else kwargs.get("run_manager")
        if type(manager) is list:  # several prompts are one call: what is inside hangs under the first
            manager = manager[0] if manager else None
        run = _runs.get(getattr(manager, "run_id", None))  # type: ignore[arg-type] # None is not among them
        return None if run is None else _Stage((), run)

    return _staged(function, switch, stage_of)


def _in_its_context(function: Any, switch: Switch) -> Any:
    """Make a run current in the context that LangChain has made for its body: *function* prepares that."""

    @functools.wraps(function)
    def prepare(config: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = function(config, *args, **kwargs)
        if switch.is_on:
            try:
                run = _runs.get(getattr(config.get("callbacks"), "parent_run_id", None))  # type: ignore[arg-type] # see above
                if run is not None:
                    run.enter()  # and never left: the context is a copy
            except Exception:
                switch.failed("a context")
        return prepared

    return prepare


def _for_all_handlers(function: Any, switch: Switch) -> Any:
    """Let handlers that do not run inline hear of a model that begins.

    *function*, `AsyncCallbackManager.on_llm_start`, leaves those out if there is one that does, as ours.
    """

    @functools.wraps(function)
    async def on_llm_start(self: Any, serialized: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        ours = [each for each in self.handlers if issubclass(type(each), _Callbacks)]
        if not ours:
            return await function(self, serialized, prompts, *args, **kwargs)
        without = copy.copy(self)
        without.handlers = [each for each in self.handlers if not issubclass(type(each), _Callbacks)]
        managers = await function(without, serialized, prompts, *args, **kwargs)
        for manager, prompt in zip(managers, prompts, strict=False):
            manager.handlers = self.handlers
            facts = {**kwargs, "run_id": manager.run_id, "parent_run_id": self.parent_run_id}
            for handler in ours:
                handler.on_llm_start(serialized, [prompt], **facts, tags=self.tags, metadata=self.metadata)
        return managers

    del switch
    return on_llm_start


_CHAT_MODELS = "langchain_core.language_models.chat_models:BaseChatModel."
_LLMS = "langchain_core.language_models.llms:BaseLLM."
_RETRIEVERS = "langchain_core.retrievers:BaseRetriever."
_TOOLS = "langchain_core.tools.base:BaseTool."
_FALLBACKS = "langchain_core.runnables.fallbacks:RunnableWithFallbacks."


def _tap(where: str, wraps: Any) -> Tap:
    # Without it what is recorded is the same; only what hangs under what is less exact.
    return Tap(where, wraps=wraps, is_optional=True)


TAPS = (
    _tap("langchain_core.runnables.config:_set_config_context", _in_its_context),
    _tap("langgraph._internal._runnable:_set_config_context", _in_its_context),
    _tap("langchain_core.callbacks.manager:AsyncCallbackManager.on_llm_start", _for_all_handlers),
    *(
        _tap(_CHAT_MODELS + name, _has_begun)
        for name in ("_generate_with_cache", "_agenerate_with_cache", "_iter_v2_events", "_aiter_v2_events")
    ),
    *(_tap(_LLMS + name, _has_begun) for name in ("_generate_helper", "_agenerate_helper")),
    *(_tap(_CHAT_MODELS + name, _begins(CHAT)) for name in ("stream", "astream")),
    *(_tap(_LLMS + name, _begins(LLM)) for name in ("stream", "astream")),
    *(_tap(_RETRIEVERS + name, _begins(RETRIEVER)) for name in ("invoke", "ainvoke")),
    *(_tap(_TOOLS + name, _begins(TOOL)) for name in ("run", "arun")),
    *(_tap(_FALLBACKS + name, _takes_in) for name in ("invoke", "ainvoke")),
)


NEEDS = (
    f"{MODULE}:register_configure_hook",
    f"{MODULE}:_configure_hooks",
    "langchain_core.callbacks.base:BaseCallbackHandler",
)


# -- on and off ----------------------------------------------------------------------------------------------


def start(switch: Switch) -> Callable[[], None]:
    """Let LangChain add the handler to every run; return what lets it no more."""
    context: Any = importlib.import_module(MODULE)
    # A variable's default is what it holds in every thread, whoever has started that.
    variable = contextvars.ContextVar("prefactor_trace_langchain", default=_handler(switch))  # noqa: B039
    context.register_configure_hook(variable, inheritable=True)
    hooks = context._configure_hooks  # noqa: SLF001 - there is no other way to take one away

    def stop() -> None:
        hooks[:] = [each for each in hooks if each[0] is not variable]

    return stop


@functools.cache
def _handler(switch: Switch) -> Any:
    base = importlib.import_module("langchain_core.callbacks.base").BaseCallbackHandler
    return type("PrefactorCallbackHandler", (_Callbacks, base), {})(switch)


def _unpickled() -> Any:
    """Return a handler that does nothing: a run that has come from another process is not this one's to record."""
    return importlib.import_module("langchain_core.callbacks.base").BaseCallbackHandler()
