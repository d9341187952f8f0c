import numpy as np
import pytest
from packages import EACH_HEAD
from sklearn.base import clone, is_classifier
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.tree import DecisionTreeClassifier

from featcache.errors import RecipeError, UnknownName
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.fusions.concat import ConcatFusion
from featcache.fitting.fusions.late import StackFusion, VoteFusion
from featcache.fitting.fusions.learned import AttentionFusion
from featcache.fitting.heads import HEADS
from featcache.fitting.heads.mlp import MLPHead
from featcache.fitting.pipeline import describe, make_classifier, with_blocks

LATE = ("vote", "stack")


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("head", EACH_HEAD)
def test_every_pair(fusion, head):
    made = make_classifier(fusion, head, blocks=(6, 4), seed=3)
    names = ["fusion"] if fusion in LATE else ["fusion", "head"]
    assert [name for name, _ in made.steps] == names
    assert describe(made) == describe(clone(made)) == (fusion, head)
    assert is_classifier(made)
    assert made["fusion"].blocks == (6, 4)
    under = made["fusion"].head if fusion in LATE else made["head"]
    assert under.get_params().get("random_state", 3) == 3


def test_attention_and_mlp_are_one():
    made = make_classifier("attention", "mlp", blocks=(6, 4))
    assert isinstance(made["fusion"], ConcatFusion)
    assert made["head"].fusion == "attention"
    assert made["head"].blocks == (6, 4)
    assert make_classifier("concat", "mlp")["head"].fusion is None


def test_gate_and_mlp_are_one():
    made = make_classifier("gated", "mlp", blocks=(6, 4))
    assert isinstance(made["fusion"], ConcatFusion)
    assert (made["head"].fusion, made["head"].blocks) == ("gated", (6, 4))


def test_late_fusion_of_own_objects():
    made = make_classifier(StackFusion(cv=4), DecisionTreeClassifier(), blocks=(6, 4))
    assert made["fusion"].cv == 4
    assert describe(made) == ("stack", "DecisionTreeClassifier")
    assert describe(VoteFusion(MLPHead(fusion="attention"))) == ("vote", "mlp")
    assert describe(VoteFusion()) == ("vote", "logreg")


def test_own_objects():
    tree = DecisionTreeClassifier()
    made = make_classifier(PCA(2), tree, settings={"head.max_depth": 2, "fusion.n_components": 3})
    assert describe(made) == ("PCA", "DecisionTreeClassifier")
    assert made["head"].max_depth == 2
    assert tree.max_depth is None
    assert describe(tree) == ("none", "DecisionTreeClassifier")


def test_nested_settings():
    made = make_classifier("concat", make_pipeline(LogisticRegression()), settings=NESTED)
    assert made["head"]["logisticregression"].C == 5


NESTED = {"head.logisticregression.C": 5}


@pytest.mark.parametrize(
    ("fusion", "head", "settings", "expected"),
    [
        ("concat", "mlp", {"head.hidden": [8, 4]}, {"head__hidden": [8, 4]}),
        ("concat", "mlp", {"mlp.hidden": 8}, {"head__hidden": 8}),
        ("concat", "mlp", {"mlp.lr": "1e-3"}, {"head__lr": 1e-3}),
        ("concat", "svm", {"mlp.hidden": 8, "svm.C": 2}, {"head__C": 2}),
        ("concat", "svm", {"concat.scale": "l2"}, {"fusion__scale": "l2"}),
        ("attention", "svm", {"concat.scale": "l2", "attention.dim": 8}, {"fusion__dim": 8}),
        ("attention", "svm", {"fusion.epochs": 2}, {"fusion__epochs": 2}),
        ("attention", "mlp", {"fusion.dim": 8}, {"head__dim": 8}),
        ("attention", "mlp", {"attention.heads": 2}, {"head__heads": 2}),
        ("attention", "mlp", {"attention.dropout": 0.5}, {"head__attention_dropout": 0.5}),
        ("attention", "mlp", {"head.dropout": 0.5}, {"head__dropout": 0.5}),
        ("gated", "mlp", {"gated.dim": 8, "attention.heads": 2}, {"head__dim": 8}),
        ("gated", "svm", {"gated.dim": 8}, {"fusion__dim": 8}),
        ("vote", "svm", {"head.C": 2, "stack.cv": 4}, {"fusion__head__C": 2}),
        ("vote", "svm", {"svm.kernel": "linear"}, {"fusion__head__kernel": "linear"}),
        ("stack", "svm", {"svm.C": "1e-3", "mlp.lr": 1}, {"fusion__head__C": 1e-3}),
        ("stack", "mlp", {"fusion.cv": 4, "stack.C": 2}, {"fusion__cv": 4, "fusion__C": 2}),
        ("concat", "mlp", {"concat.pca": 0.9}, {"fusion__pca": 0.9}),
        ("concat", "mlp", {"mlp.schedule": "cosine"}, {"head__schedule": "cosine"}),
    ],
)
def test_settings(fusion, head, settings, expected):
    params = make_classifier(fusion, head, settings=settings).get_params()
    assert {name: params[name] for name in expected} == expected


def test_setting_of_the_loop_in_joint_training(caplog):
    made = make_classifier("attention", "mlp", settings={"attention.epochs": 2})
    assert made["head"].epochs == 50
    assert "attention.epochs has no effect with mlp" in caplog.text
    with pytest.raises(RecipeError, match="no 'epochs' of its own"):
        make_classifier("attention", "mlp", settings={"fusion.epochs": 2})


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("head.hiden", "hidden"),
        ("mlp.hiden", "hidden"),
        ("svm.gama", "gamma"),
        ("attention.dimm", "dim"),
        ("fusion.skale", "scale"),
        ("stack.cvv", "cv"),
        ("gated.heads", "dim"),
        ("mpl.hidden", "mlp"),
        ("hidden", "head.NAME"),
        ("head", "head.NAME"),
    ],
)
def test_misspelt_settings(key, message):
    with pytest.raises(RecipeError) as caught:
        make_classifier("concat", "mlp", settings={key: 1})
    assert repr(key) in caught.value.problem
    assert message in caught.value.remedy


def test_text_for_a_number():
    with pytest.raises(RecipeError, match=r"'mlp\.lr' is 'fast', not a number"):
        make_classifier(settings={"mlp.lr": "fast"})


def test_unknown_names():
    with pytest.raises(UnknownName, match=r"fusion 'concatt'\nDid you mean concat"):
        make_classifier("concatt", "mlp")
    with pytest.raises(UnknownName, match="head 'mlpp'"):
        make_classifier("concat", "mlpp")


def test_with_blocks_reaches_every_depth():
    inner = Pipeline([("a", ConcatFusion()), ("b", make_pipeline(AttentionFusion(), MLPHead()))])
    ready = with_blocks(inner, np.array([6, 4]))
    assert ready["a"].blocks == ready["b"][0].blocks == ready["b"][1].blocks == (6, 4)
    assert inner["a"].blocks is None
    own = with_blocks(make_pipeline(ConcatFusion(blocks=(5, 5)), MLPHead()), (6, 4))
    assert own[0].blocks == (5, 5)


@pytest.mark.parametrize("head", ["logreg", "ridge"])
def test_rows_that_a_fusion_was_trained_on_choose_no_penalty(head):
    name, usual = {"logreg": ("C", 0.01), "ridge": ("alpha", 1000.0)}[head]

    def of(fusion, **options):
        made = make_classifier(fusion, options.pop("head", head), **options)
        return made.get_params()[f"head__{name}"]

    assert of("gated") == of("attention", select="anova:4") == usual
    assert of("concat") is of("sum") is None
    assert of("gated", settings={f"{head}.{name}": 0.5}) == 0.5
    assert of("gated", head=HEADS[head](0)) is None  # an object is as it is
