"""Fusions trained with the labels: attention, a gate or a product; and bilinear pooling."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, rfft
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, from_numpy, nn

from featcache.errors import RecipeError
from featcache.fitting.blocks import resolve_blocks, slices
from featcache.fitting.fusions.concat import ConcatFusion, unit_rows
from featcache.fitting.networks import MLP, Attention, Gate, Product, Standardise, seeded
from featcache.fitting.out_of_core import Stream, fit_with_routing, standardise
from featcache.fitting.training import OnDisk, Schedule, as_tensor, infer, train


class LearnedFusion(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What the supervised fusions share: everything but the torch module.

    `fit` standardises the columns and trains the module with an auxiliary linear classifier, which
    is then dropped; `transform` gives the fused vectors. Any classifier can follow.

    The head "mlp" can train the module in its own network instead, if it has the module's
    parameters and the class says in `joint` by which names; if the module has
    `weights`, `MLPHead.weights` then asks for them.
    """

    joint: ClassVar[dict[str, str]] = {}

    blocks: Sequence[int] | None
    random_state: Any

    def fit(self, X: Any, y: Any, groups: Any = None) -> LearnedFusion:
        """Train on X (n, d) with labels y (n,).

        Rows that share a value of `groups` (n,) are not divided by the validation share.

        Raises
        ------
        DataError
            If the blocks don't add up to d.
        RecipeError
            For a parameter out of range.
        FeatcacheError
            If the loss is no longer finite.
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
            self.network_ = self.module(self.blocks_)
            self._n_features_out = int(self.network_.width)
            auxiliary = MLP(self._n_features_out, (), len(self.classes_))
            network = nn.Sequential(self.network_, auxiliary)
            self.history_ = train(network, X, from_numpy(codes), schedule, seed, groups=groups)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """The fused vectors (n, width), float32."""
        fused: NDArray[np.float32] = infer(self._fitted(), self._checked(X)).numpy()  # (n, width)
        return fused

    def as_module(self) -> nn.Module:
        """The fitted fusion as a torch module."""
        return nn.Sequential(Standardise(self.scaler_), self._fitted())

    def untrained(self) -> Any:
        """The network of a fitted fusion with fresh weights, to load kept ones into."""
        return self.module(self.blocks_)

    def module(self, blocks: tuple[int, ...]) -> Any:
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

    search_space: ClassVar[dict[str, Any]] = {
        "dim": [64, 128, 256],
        "dropout": ("float", 0.0, 0.4),
    }
    joint: ClassVar[dict[str, str]] = {
        "dim": "dim",
        "heads": "heads",
        "dropout": "attention_dropout",
    }

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

    def module(self, blocks: tuple[int, ...]) -> Attention:
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

    search_space: ClassVar[dict[str, Any]] = {"dim": [64, 128, 256]}
    joint: ClassVar[dict[str, str]] = {"dim": "dim"}

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

    def module(self, blocks: tuple[int, ...]) -> Gate:
        return Gate(blocks, self.dim)


class HadamardFusion(LearnedFusion):
    """The product of the backbones' projected vectors, element by element, learned.

    What is negative in a projection is 0, so that a column of the product says how much all
    backbones see of one thing.

    Parameters
    ----------
    blocks : sequence of int, default None
        Width of each backbone's block; None means one block (the fusion is then a learned
        projection).
    dim : int, default 256
        Width of the fused vector.
    epochs, batch_size, lr, weight_decay, label_smoothing, patience, validation
        See `training.Schedule`; by default at most 30 epochs of batches of 64 at 3e-4.
    random_state : int, RandomState or None, default 0

    Attributes
    ----------
    blocks_ : tuple of int
    classes_ : array of labels
    scaler_ : StandardScaler
    network_ : networks.Product
    history_ : dict of lists
        Losses an epoch, see `training.train`.
    """

    search_space: ClassVar[dict[str, Any]] = {"dim": [128, 256, 512]}
    joint: ClassVar[dict[str, str]] = {"dim": "dim"}

    def __init__(
        self,
        blocks: Sequence[int] | None = None,
        dim: int = 256,
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

    def module(self, blocks: tuple[int, ...]) -> Product:
        return Product(blocks, self.dim)


_CHUNK = 4096


class BilinearFusion(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """The outer product of each pair of blocks, pressed into `width` columns.

    The tensor sketch of a pair is the circular convolution of the count sketches of its two
    blocks, taken as a product of Fourier transforms; its inner products estimate those of the
    outer products, which are never formed. The sketches of all pairs are added. One block is paired
    with itself, under a second count sketch. Then the signed square root; each row is brought to
    length 1, and each column standardised over the training rows, as the heads expect.

    Pham and Pagh, 2013, Fast and scalable polynomial kernels via explicit feature maps,
    https://doi.org/10.1145/2487575.2487591; Gao et al., 2016, Compact bilinear pooling,
    https://arxiv.org/abs/1511.06062.

    Parameters
    ----------
    blocks : sequence of int, default None
        Width of each backbone's block; None means one block.
    width : int, default 2048
        Columns of the sketch. The error of an inner product falls with its square root.
    scale : {"standard", "l2", "none"}, default "l2"
        What is done to the blocks before, see `ConcatFusion`. Products of standardised columns
        forget on which side of the mean both were, and with it most of what a linear head can
        use; hence not "standard".
    random_state : int, RandomState or None, default 0
        Draws the count sketches.

    Attributes
    ----------
    blocks_ : tuple of int
    concat_ : ConcatFusion
        What scales the blocks.
    sketches_ : list of sparse arrays of shape (d_i, width)
        One a block, two for a single block; a 1 or -1 in each row.
    scaler_ : StandardScaler
        What standardises the sketches.
    """

    search_space: ClassVar[dict[str, Any]] = {"width": [512, 1024, 2048]}

    def __init__(
        self,
        blocks: Sequence[int] | None = None,
        width: int = 2048,
        scale: str = "l2",
        random_state: Any = 0,
    ) -> None:
        self.blocks = blocks
        self.width = width
        self.scale = scale
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> BilinearFusion:
        """Draw the sketches and learn the scales from X (n, d); y is ignored.

        Raises
        ------
        DataError
            If the blocks don't add up to d.
        UnknownName
            For another `scale`.
        RecipeError
            For a `width` that is no whole number above 0.
        """
        X = validate_data(self, X, dtype=[np.float32, np.float64])  # (n, d)
        self._fit(X)
        self.scaler_ = StandardScaler().fit(self._normalised(X))
        return self

    def fit_stream(self, stream: Stream, y: Any = None, groups: Any = None) -> BilinearFusion:
        """Learn the same of rows that stay on disk."""
        self.n_features_in_ = stream.width
        self._fit(stream)
        self.scaler_ = standardise(stream.then(FunctionTransformer(self._normalised)))
        return self

    def _fit(self, X: NDArray[Any] | Stream) -> None:
        whole = isinstance(self.width, (int, np.integer)) and not isinstance(self.width, bool)
        if not whole or self.width < 1:
            raise RecipeError(f"width is {self.width!r}", "Give a whole number above 0.")
        self.concat_ = fit_with_routing(ConcatFusion(self.blocks, self.scale), X, None)
        self.blocks_ = self.concat_.blocks_
        random = check_random_state(self.random_state)
        widths = self.blocks_ * 2 if len(self.blocks_) == 1 else self.blocks_
        self.sketches_ = [_count_sketch(block, int(self.width), random) for block in widths]
        self._n_features_out = int(self.width)

    def transform(self, X: Any) -> NDArray[Any]:
        """The standardised sketches (n, width), in X's own precision (float32 or float64)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])  # (n, d)
        fused: NDArray[Any] = self.scaler_.transform(self._normalised(X))  # (n, width)
        return fused

    def _normalised(self, X: NDArray[Any]) -> NDArray[Any]:
        """The signed square roots of the sketches, in rows of length 1: (n, width)."""
        scaled = self.concat_.transform(X)  # (n, d)
        parts = [self._sketch(scaled[i : i + _CHUNK]) for i in range(0, len(scaled), _CHUNK)]
        sketch = np.concatenate(parts)  # (n, width)
        # Columns that no product falls into hold the rounding of the Fourier transforms. The square
        # root would raise it, and standardising make it as large as what is there.
        lengths = np.linalg.norm(sketch, axis=1, keepdims=True)  # (n, 1)
        rounding = 4 * np.finfo(sketch.dtype).eps * np.log2(self._n_features_out + 1) * lengths
        sketch[np.abs(sketch) < rounding] = 0
        return unit_rows(np.copysign(np.sqrt(np.abs(sketch)), sketch))  # (n, width)

    def _sketch(self, scaled: NDArray[Any]) -> NDArray[Any]:
        """The tensor sketches of the pairs of blocks, added: (n, width)."""
        parts = [scaled[:, part] for part in slices(self.blocks_)]  # k of (n, d_i)
        if len(parts) == 1:
            parts *= 2
        pairs = zip(parts, self.sketches_, strict=True)
        counts = [part @ sketch.astype(part.dtype) for part, sketch in pairs]  # k of (n, width)
        waves = [rfft(count, axis=1) for count in counts]  # k of (n, width // 2 + 1)
        product = sum(one * other for one, other in combinations(waves, 2))
        sketch: NDArray[Any] = irfft(product, n=self._n_features_out, axis=1)  # (n, width)
        return sketch

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _count_sketch(block: int, width: int, random: np.random.RandomState) -> Any:
    """A sparse (block, width) array that adds or subtracts each column at a place drawn for it."""
    places = random.randint(width, size=block)
    signs = random.choice([-1.0, 1.0], size=block)
    return csr_array((signs, (np.arange(block), places)), shape=(block, width))
