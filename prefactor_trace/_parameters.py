"""Gives a wrapper the parameters of the function it stands for.

A wrapper is written with `*args, **kwargs`. As such it would take any arguments, and a coroutine or a generator,
whose body runs later, would complain of wrong ones too late and elsewhere; and `inspect.getfullargspec`, `__code__`
and `__defaults__` would tell it from the function. So it is compiled once more, from its own source, with parameters
in that place: the same code on the same lines, once for every shape of parameter list. Then names are only labels,
and each function's are put on. Where that cannot be done (no source, or not the one that runs; a function that is not
written in Python), the wrapper stays as it is written, which does the same but for the above.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import types
from typing import Any, NamedTuple

__all__ = ["adopt"]


def adopt(wrapper: Any, function: Any) -> Any:
    """Return *wrapper*, a closure with `*args: Any, **kwargs: Any`, with the parameters of *function*.

    It must begin the scope as `open_scope(args, kwargs)` and call `function(*args, **kwargs)`, both being free; and it
    must have no globals but `_BUILTINS`, for those of *function* become its own. A `del args, kwargs` drops them all.
    """
    skipped = 0
    if type(function) is types.MethodType:
        function, skipped = function.__func__, 1
    if type(function) is types.FunctionType and skipped <= function.__code__.co_argcount:
        shape = _shape_of(function.__code__, skipped)
        code = _shaped(wrapper.__code__, shape)
        if code is not None:
            names = function.__code__.co_varnames[skipped : skipped + len(shape.names())]
            return _with_code(wrapper, _labelled(code, names), function)
    return wrapper


def _with_code(wrapper: Any, code: types.CodeType, function: types.FunctionType) -> types.FunctionType:
    """Return *wrapper* with this *code*, and with the defaults and the globals of *function*.

    What resolves annotations looks into a function's globals, and `warnings` asks those of a frame whose warning it is.
    """
    namespace = function.__globals__
    known = namespace.get("__builtins__", builtins)
    if (known is not builtins and known is not vars(builtins)) or not namespace.keys().isdisjoint(_BUILTINS):
        namespace = wrapper.__globals__  # there our words might mean something else
    made = types.FunctionType(code, namespace, wrapper.__name__, function.__defaults__, wrapper.__closure__)
    functools.update_wrapper(made, wrapper)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(wrapper.__dict__)  # `__wrapped__` is not what was there a moment ago
    return made


# What the wrappers look up outside of themselves.
_BUILTINS = frozenset(["BaseException", "GeneratorExit", "StopAsyncIteration", "StopIteration"])


class _Shape(NamedTuple):
    """How many parameters of which kind a function has. Written down, they are called `_0`, `_1`, ..."""

    positional_only: int
    positional: int
    keyword_only: int
    has_rest: bool
    has_others: bool

    def names(self) -> list[str]:
        """Return all names, in the order in which code has them."""
        return [f"_{number}" for number in range(sum(self))]

    def declared(self) -> str:
        """Return them as they stand in a `def`."""
        names = self.names()
        end = self.positional_only + self.positional
        parts = names[:end]
        if self.positional_only:
            parts.insert(self.positional_only, "/")
        if self.has_rest or self.keyword_only:
            parts.append(f"*{names[end + self.keyword_only] if self.has_rest else ''}")
        parts += names[end : end + self.keyword_only]
        return ", ".join([*parts, f"**{names[-1]}"] if self.has_others else parts)

    def given(self, by_name: str) -> tuple[str, str]:
        """Return those given by position and those given by name, these in the form *by_name*, as in a call."""
        names = self.names()
        end = self.positional_only + self.positional
        args, kwargs = names[:end], [by_name.format(name) for name in names[end : end + self.keyword_only]]
        if self.has_rest:
            args.append(f"*{names[end + self.keyword_only]}")
        if self.has_others:
            kwargs.append(f"**{names[-1]}")
        return "".join(f"{each}, " for each in args), ", ".join(kwargs)


def _shape_of(code: types.CodeType, skipped: int) -> _Shape:
    return _Shape(
        max(code.co_posonlyargcount - skipped, 0),
        code.co_argcount - max(code.co_posonlyargcount, skipped),
        code.co_kwonlyargcount,
        bool(code.co_flags & inspect.CO_VARARGS),
        bool(code.co_flags & inspect.CO_VARKEYWORDS),
    )


def _labelled(code: types.CodeType, names: tuple[str, ...]) -> types.CodeType:
    """Return *code* with these *names* of its parameters."""
    count = len(names)
    labels = dict(zip(code.co_varnames[:count], names, strict=True))

    def renamed(constant: Any) -> Any:
        if type(constant) is tuple:
            return tuple(map(renamed, constant))
        return labels.get(constant, constant) if type(constant) is str else constant

    def own(name: str) -> str:  # two of a name would be one to a debugger
        return own(name + "_") if name in names else name

    return code.replace(
        co_varnames=(*names, *map(own, code.co_varnames[count:])),
        co_freevars=tuple(map(own, code.co_freevars)),
        co_consts=tuple(map(renamed, code.co_consts)),
    )


@functools.lru_cache(maxsize=256)
def _shaped(template: types.CodeType, shape: _Shape) -> types.CodeType | None:
    """Return the code of a wrapper with parameters of this *shape*; None if that cannot be."""
    text = _source_of(template)
    if text is None:
        return None
    args, pairs = shape.given("'{0}': {0}")
    text = text.replace("open_scope(args, kwargs)", f"open_scope(({args}), {{{pairs}}})")
    text = text.replace("function(*args, **kwargs)", f"function({''.join(shape.given('{0}={0}'))})")
    dropped = ", ".join(shape.names())
    text = text.replace("del args, kwargs", f"del {dropped}" if dropped else "pass")
    return _compiled(text.replace("*args: Any, **kwargs: Any", shape.declared()), template)


@functools.lru_cache(maxsize=16)
def _source_of(template: types.CodeType) -> str | None:
    """Return what a wrapper is made of, without its decorator; None if that is not there, or is not what runs."""
    try:
        text = "".join(inspect.getsourcelines(template)[0][1:])
        same = _compiled(text, template)
    except (OSError, TypeError, SyntaxError):
        return None
    # Another version may have been installed over this one while it runs.
    return text if same.co_code == template.co_code and same.co_consts == template.co_consts else None


def _compiled(text: str, like: types.CodeType) -> types.CodeType:
    """Compile a `def` that stands in a function, and return its code, in the place of *like*."""
    # Never run. But for a name that is imported the compiler makes other code, and the wrappers import theirs.
    imports = f"import {', '.join(name for name in like.co_names if name not in like.co_varnames)}"
    around = f"{imports}{chr(10) * (like.co_firstlineno - 1)}def around({', '.join(like.co_freevars)}):\n"
    module = compile(around + text, like.co_filename, "exec", dont_inherit=True)
    (outer,) = (each for each in module.co_consts if type(each) is types.CodeType)
    return next(
        each for each in outer.co_consts if type(each) is types.CodeType and each.co_name == like.co_name
    )
