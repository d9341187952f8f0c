"""A recipe's file: read, with the files that it extends, its quick size and what is changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from featcache.errors import RecipeError, did_you_mean
from featcache.extraction.registry import check_specs
from featcache.fitting.names import check_names
from featcache.images.files import near_paths
from featcache.recipe.schema import Recipe, merge, protocols_of, typed
from featcache.store.spec import Spec, parse_spec

_OF_FILES = ("extends", "quick")  # keys of a file that the recipe itself no longer has
_LONGEST = 1 << 20  # bytes of a recipe
_OF_THE_IMAGES = ("size", "colour", "filter", "scale")  # options of a backbone for any network
_OF_DATA = (
    "name",
    "data_root",
    "columns",
    "class_map",
    "limit",
)  # what says more of one set of images


def load_recipe(
    path: str | Path,
    *,
    quick: bool = False,
    replace: Mapping[str, str] | None = None,
    **changes: Any,
) -> Recipe:
    """Read a recipe.

    `extends: other.yaml`, relative to the file, takes over what that one says: mappings are merged
    key by key, everything else is replaced, null brings a default back.

    `quick:` holds what a quick run changes. Its results stay apart: the data set is called
    `<file>-quick` in the cache, and the runs go to the folder `quick` in the reports folder.

    Parameters
    ----------
    path : str or Path
        A YAML file.
    quick : bool, default False
        Take the quick size.
    replace : mapping of str to str, optional
        Network -> the backbone that takes its place, in protocols too. A backbone's options that
        say what it sees of the images (size, colour, filter, scale) stay, unless the new one has
        its own.
    **changes
        Values that take the place of the file's, those of its protocols included. Other `data`
        also does away with `name`, `data_root` and `limit`, which belong to the file's.

    Raises
    ------
    RecipeError
        For a file that can't be read, extends itself, has a key that no recipe has, or a value
        of the wrong kind; for a network to replace that it does not have.
    """
    path = Path(path)
    plain = _read_all(path, ())
    quickly = plain.pop("quick", None)
    if quick:
        if not quickly:
            raise RecipeError(
                f"{path} has no quick size", "Add one, quick: {limit: 20}, or leave --quick out."
            )
        plain = _of_data(plain, quickly)
    plain = _of_data(plain, changes)
    if changes.get("set"):
        plain["protocols"] = {
            name: _set_again(over, changes["set"])
            for name, over in (plain.get("protocols") or {}).items()
        }
    if quick:
        plain["name"] = f"{path.stem}-quick"
    recipe = typed(plain, str(path))
    if replace:
        recipe = _with_networks(recipe, replace)
    check_specs(recipe.backbone, recipe.backbone_options)
    for one in protocols_of(recipe).values():
        check_names(one.fusion, one.head, one.set, one.select)
    from featcache.recipe.checks import check_recipe  # imports torch, for a whole recipe only

    check_recipe(recipe)
    if not quick:
        return recipe
    return recipe.model_copy(update={"reports": str(Path(recipe.reports) / "quick")})


def _read_all(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """The values of a file and of those that it extends."""
    plain = _read(path, children)
    _refuse_unknown(plain, path)
    base = plain.pop("extends", None)
    if base is None:
        return plain
    if not isinstance(base, str):
        raise RecipeError(f"{path}: extends is {base!r}", "Name one file: extends: other.yaml")
    chain = (*children, path)
    above = path.parent / Path(base).expanduser()
    if above.resolve() in [one.resolve() for one in chain]:
        circle = " -> ".join(one.name for one in (*chain, above))
        raise RecipeError(f"{path} extends itself: {circle}", "Leave one of the extends out.")
    return merge(_read_all(above, chain), plain)


def _read(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    try:
        if children and path.exists() and not path.is_file():  # a pipe would be waited for
            raise OSError("it is no regular file")
        with path.open("rb") as file:
            text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise OSError(f"it is longer than {_LONGEST} bytes")
        plain = yaml.safe_load(text.decode("utf-8"))
    except FileNotFoundError:
        raise _absent(path, children) from None
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise RecipeError(f"{path} can't be read as YAML: {error}") from None
    if not isinstance(plain, dict) or not all(isinstance(key, str) for key in plain):
        raise RecipeError(f"{path} is no recipe", "It must map names to values: backbone: resnet18")
    return plain


def _absent(path: Path, children: tuple[Path, ...]) -> RecipeError:
    folder = path.parent if children else Path("pipelines")
    there = [one.name if children else str(one) for one in sorted(folder.glob("*.yaml"))]
    named = path.name if children else str(path)
    problem = f"{children[-1]} extends {path}, and there is none" if children else (
        f"no recipe {str(path)!r}"
    )  # fmt: skip
    known = did_you_mean(named, there) if there else "Recipes end in .yaml."
    return RecipeError(problem, near_paths(path) or known)


def _refuse_unknown(plain: dict[str, Any], path: Path) -> None:
    """Name the file that has a misspelt key, rather than the one that extends it."""
    known = [*Recipe.model_fields, *_OF_FILES]
    quick = plain.get("quick")
    if quick is not None and not isinstance(quick, dict):
        raise RecipeError(f"{path}: quick is {quick!r}", "Map names to values: quick: {limit: 20}")
    for name in [key for key in plain if key not in known]:
        raise RecipeError(f"{path} has an unknown key {name!r}", did_you_mean(name, known))
    for name in [str(key) for key in quick or {} if key not in Recipe.model_fields]:
        raise RecipeError(
            f"{path} has an unknown key 'quick.{name}'", did_you_mean(name, Recipe.model_fields)
        )


def _of_data(plain: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`merge`, where other data does away with what says more of the old."""
    if over.get("data") is not None:
        plain = {name: value for name, value in plain.items() if name not in _OF_DATA}
    return merge(plain, over)


def _with_networks(recipe: Recipe, networks: Mapping[str, str]) -> Recipe:
    """A recipe with other networks in place of some."""
    there = [parse_spec(text).name for text in recipe.backbone]
    for name in [name for name in networks if name not in there]:
        raise RecipeError(f"the recipe has no network {name!r} to replace",
                          did_you_mean(name, dict.fromkeys(there)))  # fmt: skip
    protocols = {
        name: {**over, "backbone": _others(protocols_of(recipe)[name].backbone, networks)}
        if "backbone" in over else over
        for name, over in recipe.protocols.items()
    }  # fmt: skip
    backbone = _others(recipe.backbone, networks)
    return recipe.model_copy(update={"backbone": backbone, "protocols": protocols})


def _others(backbone: list[str], networks: Mapping[str, str]) -> list[str]:
    return [_other(parse_spec(text), networks) for text in backbone]


def _other(spec: Spec, networks: Mapping[str, str]) -> str:
    if spec.name not in networks:
        return spec.text
    new = parse_spec(networks[spec.name])
    kept = {name: value for name, value in spec.options.items() if name in _OF_THE_IMAGES}
    return Spec(new.name, {**kept, **new.options}).text


def _set_again(over: Any, settings: dict[str, Any]) -> Any:
    """A protocol with these settings in place of its own; anything else is checked later."""
    if not isinstance(over, dict) or not isinstance(over.get("set"), dict):
        return over
    return {**over, "set": {**over["set"], **settings}}
