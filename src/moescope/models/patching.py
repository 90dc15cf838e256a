"""What a pass changes on a model for a while, kept to the context (thread or task) that changes it.

A module's `forward` replaced and hooks on modules are written on the model, which other threads may be running. So
what is written there looks first whether the pass that comes by is one of the context that asked for it; for all others
everything is as it was.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

_MISSING = object()
_LOCK = threading.Lock()
# Methods replaced in this context, as (what stands on the object, what to call instead), the innermost last.
_REPLACED: ContextVar[tuple[tuple[Callable[..., Any], Callable[..., Any]], ...]] = ContextVar(
    "moescope_replaced", default=()
)
# Scopes of hooks that this context is in.
_SCOPES: ContextVar[tuple[object, ...]] = ContextVar("moescope_scopes", default=())


@contextmanager
def replaced(owner: Any, **methods: Callable[..., Any]) -> Iterator[None]:
    """Within the context, calls of these methods of `owner` by this thread or task go to what is given.

    They are written into the instance's dictionary and taken out again, also after an error: nothing of the class
    changes, and `nn.Module.__setattr__` is not involved. Contexts nest.

    Args:
        owner: Any object that has a `__dict__`.
        **methods: By name.
    """
    with ExitStack() as stack:
        for name, method in methods.items():
            stack.enter_context(_in_force(_REPLACED, (stack.enter_context(_standing(owner, name)), method)))
        yield


def method_of(owner: Any, name: str) -> Callable[..., Any] | None:
    """The method that a call by this thread or task would reach now, to be called by what replaces it; None: none."""
    method = getattr(owner, name, None)
    return _reached(method) if _stands_in(method) else method


@contextmanager
def hook_scope() -> Iterator[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """A scope for hooks: what it wraps acts on passes of this thread or task alone, and returns None to others.

    with hook_scope() as own:
        handle = module.register_forward_hook(own(hook))
    """
    scope = object()

    def own(hook: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(hook)
        def within(*args: Any, **kwargs: Any) -> Any:
            return hook(*args, **kwargs) if scope in _SCOPES.get() else None

        return within

    with _in_force(_SCOPES, scope):
        yield own


@dataclass
class Shared:
    """A setting of a whole process or model: made by the first who needs it, undone by the last to leave.

    Attributes:
        setting: Makes a context manager that sets and restores.
    """

    setting: Callable[..., Any]
    _users: dict[int, int] = field(default_factory=dict)
    _open: dict[int, ExitStack] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock)

    @contextmanager
    def __call__(self, *owner: object) -> Iterator[None]:
        """In force within the context, for everyone.

        Args:
            owner: What the setting is made on, if on something.
        """
        key = id(owner[0]) if owner else 0
        with self._lock:
            if key not in self._users:
                stack = ExitStack()
                stack.enter_context(self.setting(*owner))
                self._open[key] = stack
            self._users[key] = self._users.get(key, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._users[key] -= 1
                if not self._users[key]:
                    del self._users[key]
                    self._open.pop(key).close()


@contextmanager
def _in_force(variable: ContextVar[tuple[Any, ...]], entry: object) -> Iterator[None]:
    variable.set((*variable.get(), entry))
    try:
        yield
    finally:
        # Not by a token: generators may be left in another order than they were entered, or in another context.
        variable.set(tuple(other for other in variable.get() if other is not entry))


@contextmanager
def _standing(owner: Any, name: str) -> Iterator[Callable[..., Any]]:
    """Has a function stand in for a method on the object, one for all threads; counted, and removed by the last."""
    own = vars(owner)
    with _LOCK:
        standing = own.get(name)
        if not _stands_in(standing):
            standing = own[name] = _stand_in(owner, name, own.get(name, _MISSING))
        standing.moescope_users += 1
    try:
        yield standing
    finally:
        with _LOCK:
            standing.moescope_users -= 1
            # Someone else may have put something in front of it meanwhile, which then goes on calling it.
            if not standing.moescope_users and own.get(name) is standing:
                if standing.moescope_before is _MISSING:
                    del own[name]
                else:
                    own[name] = standing.moescope_before


def _stands_in(method: Any) -> bool:
    # What others wrap around a stand-in carries its attributes, too.
    return method is not None and getattr(method, "moescope_self", None) is method


def _reached(stand_in: Any) -> Callable[..., Any]:
    """What a stand-in calls in this context."""
    replacements = (method for standing, method in reversed(_REPLACED.get()) if standing is stand_in)
    method: Callable[..., Any] = next(replacements, stand_in.moescope_stock)
    return method


def _stand_in(owner: Any, name: str, before: Any) -> Any:
    stock = getattr(type(owner), name) if before is _MISSING else before

    @functools.wraps(stock)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        return _reached(stand_in)(*args, **kwargs)

    stand_in.moescope_self = stand_in  # type: ignore[attr-defined]
    stand_in.moescope_stock = functools.partial(stock, owner) if before is _MISSING else stock  # type: ignore[attr-defined]
    stand_in.moescope_users = 0  # type: ignore[attr-defined]
    stand_in.moescope_before = before  # type: ignore[attr-defined]
    return stand_in
