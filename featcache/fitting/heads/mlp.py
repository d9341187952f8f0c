"""The MLP head, alone or trained jointly with a learned fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, from_numpy, nn, no_grad

from featcache.errors import RecipeError, unknown
from featcache.fitting.blocks import resolve_blocks
from featcache.fitting.calibration import temperature
from featcache.fitting.class_weights import class_weights
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.networks import MLP, seeded
from featcache.fitting.out_of_core import Stream
from featcache.fitting.registry import names_with
from featcache.fitting.splits import hold_out
from featcache.fitting.training import (
    OnDisk,
    Schedule,
    as_tensor,
    held_out_logits,
    infer,
    train,
)


def _has_weights(head: Any) -> bool:
    network = getattr(head, "network_", None)
    return isinstance(network, nn.Sequential) and hasattr(network[0], "weights")


class MLPHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A multi-layer perceptron; expects standardised columns.

    Parameters
    ----------
    hidden : int or sequence of int, default (512,)
        Widths of the hidden layers.
    dropout : float, default 0.3
        Share of the hidden units dropped in training.
    epochs, batch_size, lr, weight_decay, label_smoothing, patience, validation
        See `training.Schedule`; by default at most 50 epochs of batches of 64 at 3e-4, stopped
        after 5 without a lower loss on a stratified tenth of the training rows.
    class_weight : None, "balanced" or dict, default None
        How much a row of each class counts in the loss, see `balance.class_weights`.
    schedule : {None, "cosine", "plateau"}, default None
        How the learning rate falls, see `training.train`.
    optimiser : {"adamw", "adam", "sgd", "rmsprop"}, default "adamw"
        See `training.Schedule`.
    calibrate : bool, default True
        Divide the last layer by a temperature that is learned on the validation rows, see
        `calibration.temperature`; False leaves it as it was trained.
    fusion : {None, "attention", "gated", "hadamard"}, default None
        Puts the module of this fusion before the perceptron and trains both in one.
    blocks : sequence of int, default None
        Width of each backbone's block, for the fusion; None means one block.
    dim : int, default 128
        Token width of the attention, or width of what gate or product give.
    heads, attention_dropout : int, float, default 4, 0.1
        Heads and dropout of the attention.
    random_state : int, RandomState or None, default 0

    Attributes
    ----------
    classes_ : array of labels
    network_ : torch module from (n, d) to logits (n, classes)
    history_ : dict of lists
        Losses an epoch, see `training.train`.
    temperature_ : float
        What the last layer was divided by; 1 without validation rows.
    held_out_ : (rows, probabilities)
        Of the validation rows, if there are any; not kept with a saved model.
    """

    search_space: ClassVar[dict[str, Any]] = {
        "hidden": [[256], [512], [1024], [512, 256]],
        "dropout": ("float", 0.0, 0.6),
        "lr": ("log", 1e-4, 3e-3),
        "weight_decay": ("log", 1e-6, 1e-1),
        "label_smoothing": [0.0, 0.05, 0.1, 0.2],
    }

    def __init__(
        self,
        hidden: int | Sequence[int] = (512,),
        dropout: float = 0.3,
        epochs: int = 50,
        batch_size: int = 64,
        lr: float = 3e-4,
        weight_decay: float = 1e-4,
        label_smoothing: float = 0.1,
        patience: int = 5,
        validation: float = 0.1,
        class_weight: str | Mapping[Any, float] | None = None,
        schedule: str | None = None,
        optimiser: str = "adamw",
        fusion: str | None = None,
        blocks: Sequence[int] | None = None,
        dim: int = 128,
        heads: int = 4,
        attention_dropout: float = 0.1,
        random_state: Any = 0,
        calibrate: bool = True,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.patience = patience
        self.validation = validation
        self.class_weight = class_weight
        self.schedule = schedule
        self.optimiser = optimiser
        self.fusion = fusion
        self.blocks = blocks
        self.dim = dim
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.random_state = random_state
        self.calibrate = calibrate

    def fit(self, X: Any, y: Any, groups: Any = None) -> MLPHead:
        """Train on X (n, d) with labels y (n,) of any kind.

        Rows that share a value of `groups` (n,) are not divided by the validation share.

        Raises
        ------
        DataError
            If the blocks don't add up to d.
        RecipeError
            For a parameter out of range.
        UnknownName
            For another `fusion` or `schedule`.
        FeatcacheError
            If the loss is no longer finite.
        """
        X, y = validate_data(self, X, y, dtype=np.float32)  # (n, d), (n,)
        return self._fit(as_tensor(X), y, groups)

    def fit_stream(self, stream: Stream, y: Any, groups: Any = None) -> MLPHead:
        """Train on rows that stay on disk; see `fit`."""
        self.n_features_in_ = stream.width
        return self._fit(OnDisk(stream), np.asarray(y), groups)

    def _fit(self, X: Tensor | OnDisk, y: NDArray[Any], groups: Any) -> MLPHead:
        schedule = Schedule.of(self)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        balance = class_weights(self.class_weight, self.classes_, y)  # (classes,)
        weights = None if balance is None else as_tensor(balance)  # (classes,)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with seeded(seed):
            self.network_ = self.joint_network(self.n_features_in_, len(self.classes_))
            self.history_ = train(
                self.network_,
                X,
                from_numpy(codes),
                schedule,
                seed,
                weights,
                self.schedule,
                groups,
            )
        _, held = hold_out(codes, groups, schedule.validation, seed)
        self.temperature_ = 1.0
        if len(held):
            self._calibrate(X, codes, held, balance)
        return self

    def _calibrate(
        self, X: Tensor | OnDisk, codes: NDArray[Any], held: NDArray[np.intp], weights: Any
    ) -> None:
        logits, rows = held_out_logits(self.network_, X, held)  # (m, classes), (m,)
        if self.calibrate:
            self.temperature_ = temperature(logits, codes[rows], weights)
            last = [layer for layer in self.network_.modules() if isinstance(layer, nn.Linear)][-1]
            with no_grad():
                last.weight.div_(self.temperature_)
                last.bias.div_(self.temperature_)
        self.held_out_ = (rows, softmax(logits.astype(np.float64) / self.temperature_, axis=1))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (n, classes), float64, in the order of `classes_`."""
        logits = infer(self._fitted(), self._checked(X))  # (n, classes)
        proba: NDArray[np.float64] = logits.double().softmax(1).numpy()  # (n, classes)
        return proba

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable label of each row (n,)."""
        best = self.predict_proba(X).argmax(axis=1)  # (n,)
        predicted: NDArray[Any] = self.classes_[best]  # (n,)
        return predicted

    def attention_weights(self, X: Any) -> NDArray[np.float32]:
        """How much backbone i attends to backbone j: (n, k, k) float32, rows sum to 1.

        Raises
        ------
        RecipeError
            For a head without attention.
        """
        return self._weights(X, "attention")  # (n, k, k)

    def gate_weights(self, X: Any) -> NDArray[np.float32]:
        """How much each backbone counts for each row: (n, k) float32, rows sum to 1.

        Raises
        ------
        RecipeError
            For a head without a gate.
        """
        return self._weights(X, "gated")  # (n, k)

    @available_if(_has_weights)  # type: ignore[untyped-decorator]
    def weights(self, X: Any) -> NDArray[np.float32]:
        """How much each backbone counts for each row: (n, k) float32, rows sum to 1.

        Of a gate, its weights; of attention, what each backbone gets, mean over those that give.
        """
        weights: NDArray[np.float32] = infer(self._fitted()[0].weights, self._checked(X)).numpy()
        return weights if weights.ndim == 2 else weights.mean(axis=1)  # (n, k)

    def _weights(self, X: Any, fusion: str) -> NDArray[np.float32]:
        network = self._fitted()
        if self.fusion != fusion:
            what = {"attention": "attention", "gated": "gate"}[fusion]
            raise RecipeError(f"this MLP has no {what}", f'Fit it with fusion="{fusion}".')
        weights: NDArray[np.float32] = infer(network[0].weights, self._checked(X)).numpy()
        return weights

    def as_module(self) -> nn.Module:
        """The fitted head as a torch module that gives logits."""
        return self._fitted()  # type: ignore[no-any-return]

    def untrained(self) -> nn.Module:
        """The network of a fitted head with fresh weights, to load kept ones into."""
        return self.joint_network(self.n_features_in_, len(self.classes_))

    def joint_network(self, width: int, classes: int) -> nn.Module:
        """The untrained network for X (n, width), fusion and perceptron.

        Also for whoever trains it in another loop. Its weights are drawn from torch's global state.
        """
        hidden = _widths(self.hidden)
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"dropout is {self.dropout!r}", "Give a number from 0 to below 1.")
        if self.fusion is None:
            return MLP(width, hidden, classes, self.dropout)
        fusion = FUSIONS[self.fusion]() if self.fusion in FUSIONS else None
        joint = getattr(fusion, "joint", {})
        if fusion is None or not joint:
            known = names_with(FUSIONS, lambda one: bool(getattr(one, "joint", {})))
            raise unknown("fusion inside the MLP", str(self.fusion), known)
        fusion.set_params(**{name: getattr(self, own) for name, own in joint.items()})
        module = fusion.module(resolve_blocks(self.blocks, width))
        return nn.Sequential(module, MLP(module.width, hidden, classes, self.dropout))

    def _fitted(self) -> Any:
        check_is_fitted(self)
        return self.network_

    def _checked(self, X: Any) -> Tensor:
        return as_tensor(validate_data(self, X, reset=False, dtype=np.float32))  # (n, d)


def _widths(hidden: int | Sequence[int]) -> tuple[int, ...]:
    widths = (hidden,) if isinstance(hidden, (int, np.integer)) else hidden
    if isinstance(widths, str) or any(
        isinstance(width, bool) or not isinstance(width, (int, np.integer)) or width < 1
        for width in widths
    ):
        raise RecipeError(f"hidden is {hidden!r}", "Give a width or a list of widths: [512, 256].")
    return tuple(int(width) for width in widths)
