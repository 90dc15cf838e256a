"""Attributes of one object replaced for a while: how a module is made to return something else than it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MISSING = object()


@contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Within the context, `owner` has these attributes of its own; afterwards those that it had, also after an error.

    They are written into the instance's dictionary: nothing of the class changes, and `nn.Module.__setattr__` is not
    involved. Contexts nest.

    Args:
        owner: Any object that has a `__dict__`.
        **attributes: By name.
    """
    own = vars(owner)
    before = {name: own.get(name, _MISSING) for name in attributes}
    own.update(attributes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is _MISSING:
                del own[name]
            else:
                own[name] = value
