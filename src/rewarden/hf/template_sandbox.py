"""A sandbox for chat templates: what they may compute, how much text they may make, and for how long.

Templates come with models, so they are other people's programs. Jinja's sandbox keeps them from the machine's files; this one
also bounds the memory and the time of one rendering, and takes clock and dice away, so that a text has one rendering.
"""

from __future__ import annotations

import ctypes
import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateRuntimeError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

LARGEST = 10_000_000
"""Characters of any one value of a template, its result included; of a list, of all that is in it."""
TOTAL = 500_000_000
"""Characters of all values that one rendering makes, one after the other."""
SECONDS = 10.0
"""Of one rendering."""
_BITS = 4096
_STEP = 8  # what an item of a list counts beside its text, about the size of a pointer


class BoundsError(TemplateRuntimeError):
    """A template wants more memory or time than a conversation can need, or dice."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment that transformers gives chat templates, with bounds."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, now: Callable[[str], str]) -> None:
        # What templates find here (filters, tags, functions) is the library's, and stays so when it changes.
        usual = chat_template_utils._compile_jinja_template("").environment
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[type(each) for each in usual.extensions.values()],
            finalize=_checked,
        )
        self.code_generator_class = _BoundedCode
        self.filters = {name: _bounded(name, each) for name, each in usual.filters.items()}
        self.filters["random"] = functools.partial(_no_dice, "the filter random")
        self.globals = {**usual.globals, "strftime_now": now, "lipsum": functools.partial(_no_dice, "lipsum")}
        self.concat = self.joined  # type: ignore[method-assign, assignment]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The result of an operator, unless it is too large; called by compiled templates."""
        if isinstance(left, int) and isinstance(right, int):
            if operator == "**" and left.bit_length() * max(right, 0) > _BITS:
                raise BoundsError(f"it wants a power of more than {_BITS} bits")
            if operator == "*" and left.bit_length() + right.bit_length() > _BITS:
                raise BoundsError(f"it wants a product of more than {_BITS} bits")
        elif operator == "%" and isinstance(left, str | bytes):
            _charge(_formatted(str(left), right if isinstance(right, tuple) else (right,)))
        elif operator == "*":
            times, value = (left, right) if isinstance(left, int) else (right, left)
            _charge(size(value) * max(times, 0) if isinstance(times, int) else 0)
        elif operator == "+":
            _charge(size(left) + size(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """The result of a call, unless it is too large; called by compiled templates."""
        for value in (*args, *kwargs.values()):
            _checked(value)
        method = getattr(__obj, "__wrapped__", __obj)  # jinja wraps the method format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes):
            args = _check_method(owner, method.__name__, args, kwargs)
        return _counted(super().call(__context, __obj, *args, **kwargs))

    def joined(self, pieces: Iterable[Any]) -> str:
        """The pieces as one text; in place of jinja's own, for `~`, macros, blocks and the whole rendering."""
        found, length = [], 0
        for piece in pieces:
            text = piece if isinstance(piece, str) else str(_checked(piece))
            length += len(text)
            if length > LARGEST:
                _charge(length)
            found.append(text)
        _charge(length)
        return "".join(found)

    def counted(self, value: Any) -> Any:
        """The value, its size counted."""
        return _counted(value)


class _BoundedCode(CodeGenerator):
    """Compiled templates, with the two operations counted that jinja lets nobody intercept."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        is_slice = isinstance(node.arg, nodes.Slice)
        self.write("environment.counted(" if is_slice else "")
        super().visit_Getitem(node, frame)
        self.write(")" if is_slice else "")


# --- Sizes ----------------------------------------------------------------------------------------


_spent = threading.local()


def size(value: Any) -> int:
    """Characters of a value as text, about.

    Raises:
        BoundsError: It is larger than a value may be.
    """
    if isinstance(value, str | bytes):
        return len(value)
    if not isinstance(value, list | tuple | dict | set | frozenset):
        return 0
    total, waiting = 0, [value]
    while waiting:
        items: Iterable[Any] = waiting.pop()
        if isinstance(items, dict):
            items = [*items.keys(), *items.values()]
        for item in items:
            total += _STEP
            if isinstance(item, str | bytes):
                total += len(item)
            elif isinstance(item, list | tuple | dict | set | frozenset):
                waiting.append(item)  # type: ignore[arg-type]
            if total > LARGEST:
                raise BoundsError(f"it makes a value of more than {LARGEST:,} characters")
    return total


def _charge(length: int) -> None:
    if length > LARGEST:
        raise BoundsError(f"it makes a text of more than {LARGEST:,} characters")
    spent = getattr(_spent, "characters", 0) + length
    _spent.characters = spent
    if spent > TOTAL:
        raise BoundsError(f"it makes more than {TOTAL:,} characters of text on the way")


def _checked(value: Any) -> Any:
    """The value, when its text is not too large."""
    if isinstance(value, str | int | float) or value is None:
        return value
    if size(value) > LARGEST:
        raise BoundsError(f"it makes a value of more than {LARGEST:,} characters")
    return value


def _counted(value: Any) -> Any:
    if isinstance(value, str | bytes | list | tuple | dict):
        _charge(size(value))
    return value


def _formatted(template: str, values: Iterable[Any]) -> int:
    """At most as many characters as a format with these values makes: its widths, and its fields full of the longest value."""
    values = list(values)
    widths = sum(min(int(digits[:12]), LARGEST + 1) for digits in re.findall(r"\d+", template))
    if "*" in template or re.search(r"\{[^{}]*\{", template):  # widths that are values
        widths += sum(abs(each) for each in values if isinstance(each, int)) * len(template)
    fields = template.count("%") + template.count("{")
    return len(template) + widths + fields * max((size(each) for each in values), default=0)


def _check_method(owner: str | bytes, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Refuse a method of a text whose result is too large; returns the arguments, an iterator among them as a list."""
    numbers = [each for each in (*args, *kwargs.values()) if isinstance(each, int)]
    length = len(owner)
    if name in ("center", "ljust", "rjust", "zfill"):
        _charge(max([length, *numbers]))
    elif name == "expandtabs":
        _charge(length * max([8, *numbers]))
    elif name == "join" and args:
        args = (list(args[0]),)
        _charge(size(args[0]) + length * len(args[0]))
    elif name == "replace" and len(args) > 1:
        _charge(length + owner.count(args[0]) * len(args[1]))
    elif name == "translate" and args and isinstance(args[0], Mapping):
        _charge(length * max((size(each) for each in args[0].values()), default=1))
    elif name in ("format", "format_map"):
        _charge(_formatted(str(owner), [*args, *kwargs.values()]))
    return args


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of jinja's whose values and results are not too large."""

    @functools.wraps(function)  # which keeps jinja's mark on filters that take its context
    def bounded(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            _checked(value)
        own = args[1:] if hasattr(function, "jinja_pass_arg") else args
        if own and (grown := _grown(name, own[0], own[1:], kwargs)):
            _charge(grown)
        return _counted(function(*args, **kwargs))

    return bounded


def _grown(name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """At most as many characters as a filter that can enlarge its value makes of it; 0 for others."""
    given = (*args, *kwargs.values())
    number = max((abs(each) for each in given if isinstance(each, int)), default=0)
    longest = max((len(each) for each in given if isinstance(each, str)), default=0)
    if name in ("center", "batch", "slice"):
        return number
    if name in ("indent", "wordwrap", "tojson", "urlize", "xmlattr"):
        return (1 + str(_checked(value)).count("\n" if name == "indent" else " ")) * (number + longest) if given else 0
    if name == "round":
        return LARGEST + 1 if number > 1000 else 0
    if name == "replace" and len(args) > 1:
        return len(str(value)) + str(value).count(str(args[0])) * len(str(args[1]))
    if name == "join" and longest and hasattr(value, "__len__"):
        return size(value) + longest * len(value)
    if name == "format":
        return _formatted(str(value), given)
    return 0


def _no_dice(what: str, *_: Any, **__: Any) -> Any:
    raise BoundsError(f"it asks for random text ({what}), so that no two renderings would be alike")


# --- Time -----------------------------------------------------------------------------------------


class _Overdue(BaseException):
    """Raised inside a rendering that takes too long."""


class _Watch:
    """Interrupts renderings that are over their time, in whatever thread they run.

    One thread looks at the clock four times a second while there are renderings, so that they cost next to nothing.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ends: dict[int, float] = {}
        self.thread: threading.Thread | None = None

    def run(self, work: Callable[[], str], seconds: float) -> str:
        """What `work` returns.

        Raises:
            BoundsError: It is not done in time.
        """
        try:
            return self._run(work, seconds)
        except _Overdue:
            raise BoundsError(f"it is not done after {seconds:g} seconds") from None

    def _run(self, work: Callable[[], str], seconds: float) -> str:
        me = threading.get_ident()
        with self.lock:
            self.ends[me] = time.monotonic() + seconds
            if self.thread is None or not self.thread.is_alive():  # the first time, or in a process that was forked
                self.thread = threading.Thread(target=self._look, name="rewarden-templates", daemon=True)
                self.thread.start()
        try:
            return work()
        finally:
            with self.lock:
                if (
                    self.ends.pop(me, None) is None
                ):  # interrupted, perhaps a moment after the end: nothing may arrive later
                    _interrupt(me, None)

    def _look(self) -> None:
        idle = 0
        while idle < 40:
            time.sleep(0.25)
            with self.lock:
                idle = 0 if self.ends else idle + 1
                now = time.monotonic()
                for thread in [thread for thread, end in self.ends.items() if end < now]:
                    del self.ends[thread]
                    _interrupt(thread, _Overdue)
                if idle >= 40:
                    self.thread = None


def _interrupt(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error and ctypes.py_object(error))


_watch = _Watch()


def bounded_run(work: Callable[[], str], *, seconds: float = SECONDS) -> str:
    """What `work` returns, with a fresh budget of characters and a limit in time.

    Raises:
        BoundsError: It takes too much of one of them.
    """
    _spent.characters = 0
    return _watch.run(work, seconds)
