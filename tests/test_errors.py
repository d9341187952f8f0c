import inspect
import pickle
import re
from pathlib import Path

import pytest

from featcache import errors
from featcache.errors import FeatcacheError, counted, did_you_mean, unknown

ALL = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, FeatcacheError)
]


def _lines(kind, depth=0):
    yield depth, kind
    for child in kind.__subclasses__():
        if child.__module__ == "featcache.errors":
            yield from _lines(child, depth + 1)


def test_the_tree_at_the_top_of_the_file_is_the_tree():
    drawn = []
    for line in (errors.__doc__ or "").splitlines():
        name = next((w for w in line.split() if hasattr(errors, w)), None)
        if name and "exit" in line:
            drawn.append((line.index(name) // 4, name, int(line.split("exit ")[1][0])))
    real = [(depth, kind.__name__, kind.exit_code) for depth, kind in _lines(FeatcacheError)]
    assert sorted(drawn) == sorted(real)


@pytest.mark.parametrize("kind", ALL)
def test_says_the_problem_then_the_remedy(kind):
    assert str(kind("it broke", "mend it")) == "it broke\nmend it"
    assert str(kind("it broke")) == "it broke"


@pytest.mark.parametrize("kind", ALL)
def test_crosses_processes(kind):
    back = pickle.loads(pickle.dumps(kind("it broke", "mend it")))
    assert type(back) is kind
    assert (back.problem, back.remedy) == ("it broke", "mend it")


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.UnknownName, ValueError),
        (errors.RecipeError, ValueError),
        (errors.DataError, ValueError),
        (errors.WeightsError, OSError),
        (errors.CacheMissing, FileNotFoundError),
    ],
)
def test_is_also_the_builtin_that_a_caller_expects(kind, builtin):
    assert issubclass(kind, builtin)


def test_near_names_are_suggested_and_otherwise_the_known_ones():
    assert did_you_mean("resnet81", ["resnet18", "vgg16"]) == "Did you mean resnet18?"
    assert did_you_mean("zzz", ["b", "a"]) == "Known: a, b."
    assert did_you_mean("zzz", [f"n{i:02d}" for i in range(30)]).endswith("n19, ….")


def test_unknown_carries_the_wrong_name():
    error = unknown("head", "svn", ["svm", "mlp"], "See the page.")
    assert error.problem == "unknown head 'svn'"
    assert error.remedy == "Did you mean svm? See the page."


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (1, "row", "1 row"),
        (0, "row", "0 rows"),
        (10_000, "test image", "10,000 test images"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
        (2, "index", "2 indexes"),
        (8, "epoch", "8 epochs"),
        (3, "entry", "3 entries"),
        (2, "key", "2 keys"),
    ],
)
def test_counts(number: int, noun: str, said: str) -> None:
    assert counted(number, noun) == said


def test_a_plural_may_be_given() -> None:
    assert counted(1, "image or group", "images or groups") == "1 image or group"
    assert counted(2, "image or group", "images or groups") == "2 images or groups"


# Places where there are always two or more, or where the plural hangs on another word.
PLURAL = {
    "lowest to highest of {len(first)} folds",
    "mean of {len(lines)} classes",
    "{len(runs)} folds: thin",
    "there are {len(sharing)} backbones",
    "{len(found)} runs",
    "{folds} folds of {train} training",
    "{folds} folds = ",
    "{len(folds) // repeats} folds",
    "{len(folds)} folds",
    "Ask for {count} folds",
    "{len(unseen)} labels are",
    "{self.epochs} epochs are frozen",
}
COUNT = re.compile(
    r"\{(?:len\([^{}\"]*\)|(?:[\w.]*\.)?(?:count|rows|n|tested|images|classes|folds|epochs|workers)|"
    r"len\(folds\) // repeats)(?::,)?\} (?:[a-z]+ )?"
    r"(?:images|rows|classes|files|folds|vectors|runs|groups|columns|fits|labels|candidates|"
    r"backbones|epochs|workers)\b"
)


def test_every_count_agrees_with_its_noun():
    """What prints "1 rows" does not go through `counted`."""
    for path in Path(errors.__file__).parent.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if COUNT.search(line):
                assert any(known in line for known in PLURAL), f"{path}: {line.strip()}"
