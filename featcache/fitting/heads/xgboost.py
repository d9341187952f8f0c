"""The XGBoost head; the only module that imports xgboost."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.errors import DataError, FeatcacheError, RecipeError, unknown
from featcache.fitting.heads.booster_file import check_booster
from featcache.fitting.out_of_core import Stream, by_blocks
from featcache.fitting.splits import hold_out

try:
    import xgboost
    from xgboost import XGBClassifier
except ModuleNotFoundError as error:
    if error.name != "xgboost":
        raise
    raise FeatcacheError(
        "the head 'xgboost' needs the package xgboost, which is not installed",
        "pip install 'xgboost>=2.1'",
    ) from error

_COLUMNS = 64  # that a tree sees by default
_PAGE = 2**26  # bytes of float32 that XGBoost is handed at a time
_BINS = 2**28  # numbers, a byte each, up to which the bins stay in memory


class XGBHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Gradient-boosted trees with defaults for a few thousand dense columns.

    Few bins, and 64 columns for each tree: the columns of an embedding say much the same, so a
    tree loses little. Chosen by inner validation on three data sets, see
    `reports/benchmarks/heads.md`.

    Parameters
    ----------
    n_estimators : int, default 400
        Most rounds; one tree a class each.
    learning_rate : float, default 0.1
    max_depth : int, default 3
    colsample_bytree : float or None, default None
        Share of the columns a tree sees; None is 64 columns, or all if there are fewer.
    subsample : float, default 0.8
        Share of the rows a tree sees.
    max_bin : int, default 32
    patience : int, default 20
        Rounds without a lower validation loss before boosting stops.
    validation : float, default 0.1
        Share of the rows, stratified, kept for early stopping; 0, or a share that can't hold
        every class, uses all rows and all rounds.
    n_jobs : int, default None
        Threads; None means all.
    device : {"auto", "cpu", "cuda"} or "cuda:N", default "auto"
        Where the trees are grown; "auto" is a GPU where both torch and this build of xgboost
        know one.
    random_state : int, RandomState or None, default 0

    Attributes
    ----------
    classes_ : array of labels
    booster_ : XGBClassifier
        Fitted on the labels' positions in `classes_`.
    history_ : dict of lists
        `val_loss` a round; empty without a validation share.
    held_out_ : (rows, probabilities)
        Of the validation rows, if there are any; not kept with a saved model.
    """

    search_space: ClassVar[dict[str, Any]] = {
        "learning_rate": ("log", 0.03, 0.3),
        "max_depth": ("int", 2, 8),
        "colsample_bytree": ("log", 0.02, 1.0),
        "subsample": ("float", 0.5, 1.0),
    }

    def __init__(
        self,
        n_estimators: int = 400,
        learning_rate: float = 0.1,
        max_depth: int = 3,
        colsample_bytree: float | None = None,
        subsample: float = 0.8,
        max_bin: int = 32,
        patience: int = 20,
        validation: float = 0.1,
        n_jobs: int | None = None,
        device: str = "auto",
        random_state: Any = 0,
    ) -> None:
        self.n_estimators = n_estimators
        self.learning_rate = learning_rate
        self.max_depth = max_depth
        self.colsample_bytree = colsample_bytree
        self.subsample = subsample
        self.max_bin = max_bin
        self.patience = patience
        self.validation = validation
        self.n_jobs = n_jobs
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> XGBHead:
        """Boost on X (n, d) with labels y (n,) of any kind.

        Rows that share a value of `groups` (n,) are not divided by the validation share.
        """
        X, y = validate_data(self, X, y, dtype=np.float32)  # (n, d), (n,)
        codes, train, held, seed = self._start(y, groups)
        self.booster_ = self._booster(seed, stop=len(held) > 0)
        self.booster_.fit(
            X[train],
            codes[train],
            eval_set=[(X[held], codes[held])] if len(held) else None,
            verbose=False,
        )
        self._keep_history(self.booster_.evals_result() if len(held) else {})
        if len(held):
            self.held_out_ = (held, self.predict_proba(X[held]))
        return self

    def fit_stream(self, stream: Stream, y: Any, groups: Any = None) -> XGBHead:
        """Boost on rows that stay on disk; see `fit`.

        The bins are made block by block, a byte for each number; where they are many, they are
        kept in a temporary folder (xgboost 3.0 or newer).
        """
        self.n_features_in_ = stream.width
        codes, train, held, seed = self._start(np.asarray(y), groups)
        wanted = self._booster(seed, stop=len(held) > 0)
        k = len(self.classes_)
        shape = {"objective": "multi:softprob", "num_class": k} if k > 2 else {
            "objective": "binary:logistic"
        }  # fmt: skip
        with TemporaryDirectory(prefix="featcache-", ignore_cleanup_errors=True) as folder:
            grown, losses = self._grow(
                wanted.get_xgb_params() | shape, stream, codes, train, held, folder
            )
        self.booster_ = XGBClassifier()
        self.booster_.load_model(bytearray(grown.save_raw("ubj")))
        self._keep_history(losses)
        if len(held):
            self.held_out_ = (held, by_blocks(self.predict_proba, stream.take(held)))
        return self

    def _grow(
        self,
        params: dict[str, Any],
        stream: Stream,
        codes: NDArray[np.intp],
        train: NDArray[np.intp],
        held: NDArray[np.intp],
        folder: str,
    ) -> tuple[xgboost.Booster, dict[str, Any]]:
        """The booster and its losses; all that needs the folder is gone on return."""
        losses: dict[str, Any] = {}
        bins = partial(_bins, threads=self.n_jobs, max_bin=self.max_bin)
        data = bins(stream.take(train), codes[train], f"{folder}/train")
        watched = []
        if len(held):
            watched = [(bins(stream.take(held), codes[held], f"{folder}/held", ref=data), "held")]
        grown = xgboost.train(
            params,
            data,
            self.n_estimators,
            evals=watched,
            early_stopping_rounds=self.patience if watched else None,
            evals_result=losses,
            verbose_eval=False,
        )
        return grown, losses

    def _start(
        self, y: NDArray[Any], groups: Any
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], int]:
        """The classes' positions (n,), the rows to train on and to hold back, and a seed."""
        if not 0 <= self.validation < 1:
            raise RecipeError(
                f"validation is {self.validation!r}", "Give a share from 0 to below 1."
            )
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"XGBHead needs two classes, y has 1 class: {self.classes_[0]}")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return codes, *hold_out(codes, groups, self.validation, seed), seed

    def _keep_history(self, losses: dict[str, Any]) -> None:
        self.history_ = {
            "val_loss": [
                float(v) for scores in losses.values() for v in next(iter(scores.values()))
            ]
        }

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (n, classes), float64, in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float32)  # (n, d)
        proba = self.booster_.predict_proba(X).astype(np.float64)  # (n, classes)
        scaled: NDArray[np.float64] = proba / proba.sum(axis=1, keepdims=True)  # (n, classes)
        return scaled

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable label of each row (n,)."""
        best = self.predict_proba(X).argmax(axis=1)  # (n,)
        predicted: NDArray[Any] = self.classes_[best]  # (n,)
        return predicted

    def _share(self) -> float:
        if self.colsample_bytree is not None:
            return self.colsample_bytree
        return min(1.0, _COLUMNS / self.n_features_in_)

    def _booster(self, seed: int, stop: bool) -> XGBClassifier:
        return XGBClassifier(
            n_estimators=self.n_estimators,
            learning_rate=self.learning_rate,
            max_depth=self.max_depth,
            colsample_bytree=self._share(),
            subsample=self.subsample,
            max_bin=self.max_bin,
            early_stopping_rounds=self.patience if stop else None,
            tree_method="hist",
            device=_device(self.device),
            n_jobs=self.n_jobs,
            random_state=seed,
        )


def read_booster(path: Path, width: int | None) -> XGBClassifier:
    """The fitted booster that a file holds, as `XGBClassifier.save_model` wrote it.

    `width` is how many columns X has, if that is known. XGBoost follows the numbers in a file
    without looking: they are checked first.
    """
    data = path.read_bytes()
    try:
        check_booster(data, width)
    except ValueError as error:
        raise DataError(
            f"{path} holds no booster that can be followed: {error}",
            "It may do harm when it is used; it was not loaded. Copy the whole folder again, or "
            "fit it again.",
        ) from None
    booster = XGBClassifier()
    booster.load_model(bytearray(data))
    return booster


class _Blocks(xgboost.DataIter):
    """A stream's blocks with their labels, as XGBoost asks for them."""

    def __init__(self, stream: Stream, codes: NDArray[np.intp], place: str | None) -> None:
        self._stream, self._codes = stream, codes
        self._parts: Any = None
        super().__init__(cache_prefix=place)

    def next(self, input_data: Any) -> bool:
        """Hand over the next block; False where there is none."""
        rows, block = next(self._parts, (None, None))
        if rows is None:
            return False
        input_data(data=block, label=self._codes[rows])
        return True

    def reset(self) -> None:
        """Begin again."""
        size = max(1, _PAGE // (4 * self._stream.width))
        self._parts = self._stream.pieces(self._stream.order, size)


def _bins(
    stream: Stream,
    codes: NDArray[np.intp],
    place: str,
    threads: int | None,
    max_bin: int,
    ref: Any = None,
) -> Any:
    """The stream's numbers by their quantiles: in memory, or at `place` where they are many."""
    on_disk = len(stream) * stream.width > _BINS and hasattr(xgboost, "ExtMemQuantileDMatrix")
    kind = xgboost.ExtMemQuantileDMatrix if on_disk else xgboost.QuantileDMatrix
    blocks = _Blocks(stream, codes, place if on_disk else None)
    return kind(blocks, max_bin=max_bin, nthread=threads, ref=ref)


def _device(name: str) -> str:
    """The device that a name comes to.

    Raises
    ------
    UnknownName
        For another name.
    """
    if re.fullmatch(r"cpu|cuda(:\d+)?", name):
        return name
    if name != "auto":
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:1"))
    seen = torch.cuda.is_available() and bool(xgboost.build_info().get("USE_CUDA"))
    return "cuda" if seen else "cpu"
