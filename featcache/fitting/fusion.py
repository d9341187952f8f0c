"""Fusions: sklearn transformers that know where each backbone's columns stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, from_numpy, nn

from featcache.errors import unknown
from featcache.fitting.blocks import resolve_blocks, slices
from featcache.fitting.networks import MLP, Attention, seeded
from featcache.fitting.training import Schedule, as_tensor, infer, train

_SCALES = ("standard", "l2", "none")


class ConcatFusion(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """The blocks side by side, each brought to a common scale.

    Parameters
    ----------
    blocks : sequence of int, default None
        Width of each backbone's block; None means one block.
    scale : {"standard", "l2", "none"}, default "standard"
        "standard": each column to mean 0 and standard deviation 1 over the training rows (a
        constant column becomes 0); "l2": each row of each block to length 1 (zero rows stay
        zero), nothing is learned; "none": X as it is.

    Attributes
    ----------
    blocks_ : tuple of int
        The blocks that were found.
    scaler_ : StandardScaler or None
        What "standard" learned.
    """

    def __init__(self, blocks: Sequence[int] | None = None, scale: str = "standard") -> None:
        self.blocks = blocks
        self.scale = scale

    def fit(self, X: Any, y: Any = None) -> ConcatFusion:
        """Learn the scale of X (n, d); y is ignored.

        Raises
        ------
        DataError
            Where the blocks don't add up to d.
        UnknownName
            For another `scale`.
        """
        if self.scale not in _SCALES:
            raise unknown("scale", str(self.scale), _SCALES)
        X = validate_data(self, X, dtype=[np.float32, np.float64])  # (n, d)
        self.blocks_ = resolve_blocks(self.blocks, X.shape[1])
        self.scaler_ = StandardScaler().fit(X) if self.scale == "standard" else None
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """The scaled X (n, d), in X's own precision (float32 or float64)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])  # (n, d)
        if self.scaler_ is not None:
            scaled: NDArray[Any] = self.scaler_.transform(X)  # (n, d)
            return scaled
        if self.scale == "none":
            return np.array(X)  # (n, d)
        return np.concatenate([_unit_rows(X[:, part]) for part in slices(self.blocks_)], axis=1)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """The names of the columns: those of the input, or x0, x1, …"""
        check_is_fitted(self)
        if input_features is None:
            input_features = getattr(self, "feature_names_in_", None)
        if input_features is None:
            input_features = [f"x{i}" for i in range(self.n_features_in_)]
        return np.asarray(input_features, dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _unit_rows(block: NDArray[Any]) -> NDArray[Any]:
    """Rows of length 1, zero rows as they are.

    sklearn's normalize leaves rows shorter than about 1e-6 alone in float32; dividing by the
    largest value first keeps the squares of such rows from vanishing.
    """
    peak = np.abs(block).max(axis=1, keepdims=True)  # (n, 1)
    block = block / np.where(peak > 0, peak, 1)  # (n, d)
    length = np.linalg.norm(block, axis=1, keepdims=True)  # (n, 1)
    unit: NDArray[Any] = block / np.where(length > 0, length, 1)  # (n, d)
    return unit


class AttentionFusion(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Cross-attention between the backbones' vectors, learned with the labels.

    A supervised transformer: `fit` standardises the columns and trains the attention with an
    auxiliary linear classifier, which is then dropped; `transform` gives the fused vectors. Any
    classifier can follow.

    Parameters
    ----------
    blocks : sequence of int, default None
        Width of each backbone's block; None means one block (there is then nothing to attend
        to, and the fusion is a learned projection).
    dim : int, default 128
        Width of each backbone's token; a multiple of `heads`.
    heads : int, default 4
        Attention heads.
    dropout : float, default 0.1
        Share of the attention weights dropped in training.
    epochs, batch_size, lr, weight_decay, label_smoothing, patience, validation
        See `training.Schedule`; by default at most 30 epochs of batches of 64 at 3e-4.
    random_state : int, RandomState or None, default 0

    Attributes
    ----------
    blocks_ : tuple of int
    classes_ : array of labels
    scaler_ : StandardScaler
    network_ : networks.Attention
    history_ : dict of lists
        Losses an epoch, see `training.train`.
    """

    def __init__(
        self,
        blocks: Sequence[int] | None = None,
        dim: int = 128,
        heads: int = 4,
        dropout: float = 0.1,
        epochs: int = 30,
        batch_size: int = 64,
        lr: float = 3e-4,
        weight_decay: float = 1e-4,
        label_smoothing: float = 0.1,
        patience: int = 5,
        validation: float = 0.1,
        random_state: Any = 0,
    ) -> None:
        self.blocks = blocks
        self.dim = dim
        self.heads = heads
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.patience = patience
        self.validation = validation
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> AttentionFusion:
        """Train on X (n, d) with labels y (n,).

        Raises
        ------
        DataError
            Where the blocks don't add up to d.
        RecipeError
            For a parameter out of range.
        """
        schedule = Schedule.of(self)
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])  # (n, d), (n,)
        check_classification_targets(y)
        self.blocks_ = resolve_blocks(self.blocks, X.shape[1])
        self.classes_, codes = np.unique(y, return_inverse=True)
        self.scaler_ = StandardScaler().fit(X)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with seeded(seed):
            self.network_ = Attention(self.blocks_, self.dim, self.heads, self.dropout)
            auxiliary = MLP(len(self.blocks_) * self.dim, (), len(self.classes_))
            network = nn.Sequential(self.network_, auxiliary)
            self.history_ = train(network, self._tensor(X), from_numpy(codes), schedule, seed)
        self._n_features_out = len(self.blocks_) * self.dim
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """The fused vectors (n, k * dim), float32."""
        fused: NDArray[np.float32] = infer(self.network_, self._checked(X)).numpy()  # (n, k * dim)
        return fused

    def attention_weights(self, X: Any) -> NDArray[np.float32]:
        """How much backbone i attends to backbone j: (n, k, k) float32, rows sum to 1."""
        weights: NDArray[np.float32] = infer(self.network_.weights, self._checked(X)).numpy()
        return weights  # (n, k, k)

    def _checked(self, X: Any) -> Tensor:
        check_is_fitted(self)
        return self._tensor(validate_data(self, X, reset=False, dtype=[np.float32, np.float64]))

    def _tensor(self, X: NDArray[Any]) -> Tensor:
        return as_tensor(self.scaler_.transform(X))  # (n, d)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


FUSIONS: dict[str, Any] = {
    "concat": ConcatFusion,
    "attention": AttentionFusion,
}
