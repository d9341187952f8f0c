"""Fusions trained with the labels: attention between the backbones, and a gate over them."""

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

from featcache.fitting.batches import OnDisk
from featcache.fitting.blocks import resolve_blocks
from featcache.fitting.networks import MLP, Attention, Gate, seeded
from featcache.fitting.stream import Stream, standardise
from featcache.fitting.training import Schedule, as_tensor, infer, train


class LearnedFusion(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What the supervised fusions share: everything but the torch module.

    `fit` standardises the columns and trains the module with an auxiliary linear classifier, which
    is then dropped; `transform` gives the fused vectors. Any classifier can follow.
    """

    blocks: Sequence[int] | None
    random_state: Any

    def fit(self, X: Any, y: Any, groups: Any = None) -> LearnedFusion:
        """Train on X (n, d) with labels y (n,).

        Rows that share a value of `groups` (n,) are not divided by the validation share.

        Raises
        ------
        DataError
            Where the blocks don't add up to d.
        RecipeError
            For a parameter out of range.
        FeatcacheError
            Where the loss is no longer finite.
        """
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])  # (n, d), (n,)
        self.scaler_ = StandardScaler().fit(X)
        return self._fit(self._tensor(X), y, groups)

    def fit_stream(self, stream: Stream, y: Any, groups: Any = None) -> LearnedFusion:
        """Train on rows that stay on disk; see `fit`."""
        self.n_features_in_ = stream.width
        self.scaler_ = standardise(stream)
        return self._fit(OnDisk(stream.then(self.scaler_)), np.asarray(y), groups)

    def _fit(self, X: Tensor | OnDisk, y: NDArray[Any], groups: Any) -> LearnedFusion:
        schedule = Schedule.of(self)
        check_classification_targets(y)
        self.blocks_ = resolve_blocks(self.blocks, self.n_features_in_)
        self.classes_, codes = np.unique(y, return_inverse=True)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with seeded(seed):
            self.network_ = self._module(self.blocks_)
            self._n_features_out = int(self.network_.width)
            auxiliary = MLP(self._n_features_out, (), len(self.classes_))
            network = nn.Sequential(self.network_, auxiliary)
            self.history_ = train(network, X, from_numpy(codes), schedule, seed, groups=groups)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """The fused vectors (n, width), float32."""
        fused: NDArray[np.float32] = infer(self._fitted(), self._checked(X)).numpy()  # (n, width)
        return fused

    def untrained(self) -> Any:
        """The network of a fitted fusion with fresh weights, to load kept ones into."""
        return self._module(self.blocks_)

    def _module(self, blocks: tuple[int, ...]) -> Any:
        """The untrained torch module."""
        raise NotImplementedError

    def _fitted(self) -> Any:
        check_is_fitted(self)
        return self.network_

    def _checked(self, X: Any) -> Tensor:
        return self._tensor(validate_data(self, X, reset=False, dtype=[np.float32, np.float64]))

    def _tensor(self, X: NDArray[Any]) -> Tensor:
        return as_tensor(self.scaler_.transform(X))  # (n, d)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


class AttentionFusion(LearnedFusion):
    """Cross-attention between the backbones' vectors, learned with the labels.

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

    def attention_weights(self, X: Any) -> NDArray[np.float32]:
        """How much backbone i attends to backbone j: (n, k, k) float32, rows sum to 1."""
        weights: NDArray[np.float32] = infer(self._fitted().weights, self._checked(X)).numpy()
        return weights  # (n, k, k)

    def weights(self, X: Any) -> NDArray[np.float32]:
        """How much attention each backbone gets, mean over those that give it: (n, k) float32."""
        received: NDArray[np.float32] = self.attention_weights(X).mean(axis=1)
        return received  # (n, k), rows sum to 1

    def _module(self, blocks: tuple[int, ...]) -> Attention:
        return Attention(blocks, self.dim, self.heads, self.dropout)


class GatedFusion(LearnedFusion):
    """A weighted mean of the backbones' projected vectors, the weights by image, learned.

    Parameters
    ----------
    blocks : sequence of int, default None
        Width of each backbone's block; None means one block (its weight is then 1, and the
        fusion is a learned projection).
    dim : int, default 128
        Width of the fused vector.
    epochs, batch_size, lr, weight_decay, label_smoothing, patience, validation
        See `training.Schedule`; by default at most 30 epochs of batches of 64 at 3e-4.
    random_state : int, RandomState or None, default 0

    Attributes
    ----------
    blocks_ : tuple of int
    classes_ : array of labels
    scaler_ : StandardScaler
    network_ : networks.Gate
    history_ : dict of lists
        Losses an epoch, see `training.train`.
    """

    def __init__(
        self,
        blocks: Sequence[int] | None = None,
        dim: int = 128,
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
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.patience = patience
        self.validation = validation
        self.random_state = random_state

    def gate_weights(self, X: Any) -> NDArray[np.float32]:
        """How much each backbone counts for each row: (n, k) float32, rows sum to 1."""
        weights: NDArray[np.float32] = infer(self._fitted().weights, self._checked(X)).numpy()
        return weights  # (n, k)

    def weights(self, X: Any) -> NDArray[np.float32]:
        """The same as `gate_weights`, under the name that all fusions with weights share."""
        return self.gate_weights(X)  # (n, k)

    def _module(self, blocks: tuple[int, ...]) -> Gate:
        return Gate(blocks, self.dim)
