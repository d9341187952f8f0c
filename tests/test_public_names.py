"""What `import featcache` offers is what `__all__` says."""

from __future__ import annotations

import ast
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import featcache


@pytest.mark.parametrize("name", featcache.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(featcache, name) is not None


def test_all_is_what_is_visible() -> None:
    assert set(dir(featcache)) == {*featcache.__all__, "__version__"}
    assert set(featcache.__all__) == set(featcache._HOME_OF)


def test_type_checkers_see_the_same_names_as_users() -> None:
    tree = ast.parse(Path(featcache.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module.removeprefix("featcache.")
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert seen == featcache._HOME_OF


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="extrakt"):
        _ = featcache.extrakt  # type: ignore[attr-defined]


def test_version_is_the_package_s() -> None:
    try:
        installed = version("featcache")
    except PackageNotFoundError:
        pytest.skip("run from the source tree, not installed")
    assert installed == featcache.__version__
