import inspect
import pickle

import pytest

from featcache import errors
from featcache.errors import FeatcacheError, did_you_mean, unknown

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
