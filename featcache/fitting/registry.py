"""What goes by a name: classes that are imported when they are first used."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from featcache.errors import FeatcacheError


class LazyClass:
    """A callable that makes objects of a class, which is imported with the first of them.

    Parameters
    ----------
    path : str
        "module:Class".
    search_space : mapping, default {}
        What `tuning` searches, for a class of another library; ours have an attribute of that name.
    **params
        Parameters that differ from the class's own defaults.
    """

    def __init__(
        self, path: str, search_space: Mapping[str, Any] | None = None, **params: Any
    ) -> None:
        self.module, _, self.__name__ = path.partition(":")
        self.search_space = search_space or {}
        self.params = params

    def load(self) -> Any:
        """The class.

        Raises
        ------
        FeatcacheError
            If a package that it needs is not installed.
        """
        return getattr(importlib.import_module(self.module), self.__name__)

    def __call__(self, seed: int | None = None, /, **params: Any) -> Any:
        """An object; a seed becomes its `random_state`, if it has one."""
        made = self.load()(**{**self.params, **params})
        if seed is not None and "random_state" in made.get_params(deep=False):
            made.set_params(random_state=seed)
        return made

    def parameters(self) -> frozenset[str] | None:
        """What the class is made with, from its source: neither it nor its libraries are imported.

        None if that isn't known: for classes of other libraries.
        """
        return _parameters(self.module, self.__name__)


@cache
def _parameters(module: str, name: str) -> frozenset[str] | None:
    try:
        found = importlib.util.find_spec(module) if module.startswith("featcache.") else None
    except ValueError:  # one that was put together at run time
        found = None
    if found is None or not found.origin or not found.origin.endswith(".py"):
        return None
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    while name in classes:
        for node in classes[name].body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                one = node.args
                named = {arg.arg for arg in (*one.args[1:], *one.kwonlyargs)}
                return None if one.vararg or one.kwarg else frozenset(named)
        name = next((base.id for base in classes[name].bases if isinstance(base, ast.Name)), "")
    return None


def name_of(made: Any, registered: Mapping[str, Callable[..., Any]]) -> str:
    """The name that an object's class goes by; the class's own if it is not registered."""
    own = type(made).__name__
    return next(
        (n for n, maker in registered.items() if getattr(maker, "__name__", "") == own), own
    )


def search_space(
    name: Any, made: Any, registered: Mapping[str, Callable[..., Any]]
) -> Mapping[str, Any]:
    """What `tuning` searches of what a name has made; nothing of an object of the user's."""
    if not isinstance(name, str):
        return {}
    of_the_line = getattr(registered[name], "search_space", None)
    found: Mapping[str, Any] = of_the_line or getattr(made, "search_space", {})
    return found


def names_with(
    registered: Mapping[str, Callable[..., Any]], has: Callable[[Any], bool]
) -> tuple[str, ...]:
    """The names whose class, if its package is installed, answers a question with yes."""
    return tuple(name for name, maker in registered.items() if has(class_of(maker)))


def class_of(maker: Any) -> Any:
    """What a registered callable makes; None if its package is not installed."""
    try:
        return maker.load() if isinstance(maker, LazyClass) else maker
    except FeatcacheError:
        return None
