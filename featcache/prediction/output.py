"""Output: predictions as a table, CSV or JSON, one image at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import IO, Any

from featcache.csv_cells import row_writer
from featcache.prediction.model import Prediction

Labelled = tuple[str, Prediction]


def table_rows(
    predictions: Iterable[Labelled], classes: Sequence[str], top: int
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: image, then label and probability of the `top` most probable classes."""
    count, rows = 1, []
    for path, one in predictions:
        best = ranked(one, classes, top)
        count = max(count, len(best))
        rows.append([path, *(cell for label, p in best for cell in (label, _percent(p)))])
    numbered = [""] if count == 1 else [f" {place}" for place in range(1, count + 1)]
    columns = ["image", *(f"{word}{n}" for n in numbered for word in ("label", "probability"))]
    return columns, rows


def write_csv(
    file: IO[str], predictions: Iterable[Labelled], classes: Sequence[str], top: int | None
) -> None:
    """Columns path, pred and p_<class>; with `top` path, label1, p1, label2, p2, …"""
    write = row_writer(file)
    header: list[str] = []
    for path, one in predictions:
        if not header:
            header = _header(one, classes, top)
            write(header)
        if top is None:
            proba = [] if one.proba is None else [repr(float(p)) for p in one.proba]
            write([path, one.label, *proba])
        else:
            best = ranked(one, classes, top)
            write([path, *(cell for label, p in best for cell in (label, p))])


def write_json(
    file: IO[str], predictions: Iterable[Labelled], classes: Sequence[str], top: int | None
) -> None:
    """A list of objects with `path`, `label` and `probabilities` by class, or of the `top` first.

    `probabilities` is null where the model gives none.
    """
    before = "[\n"
    for path, one in predictions:
        best = ranked(one, classes, top or len(classes)) if top else _in_order(one, classes)
        plain: dict[str, Any] = {"path": path, "label": one.label}
        plain["probabilities"] = None if one.proba is None else dict(best)
        file.write(before + json.dumps(plain, ensure_ascii=False))
        before = ",\n"
    file.write("[]\n" if before == "[\n" else "\n]\n")


def ranked(one: Prediction, classes: Sequence[str], top: int) -> list[tuple[str, float | None]]:
    """The predicted label, then the others by falling probability; `top` in all.

    A model without probabilities has only its label to give.
    """
    if one.proba is None:
        return [(one.label, None)]
    both = [(label, float(p)) for label, p in zip(classes, one.proba, strict=True)]
    return list(sorted(both, key=lambda pair: (pair[0] != one.label, -pair[1]))[:top])


def _in_order(one: Prediction, classes: Sequence[str]) -> list[tuple[str, float]]:
    return [] if one.proba is None else list(zip(classes, map(float, one.proba), strict=True))


def _header(one: Prediction, classes: Sequence[str], top: int | None) -> list[str]:
    if top is None:
        return ["path", "pred", *([] if one.proba is None else [f"p_{name}" for name in classes])]
    places = range(1, len(ranked(one, classes, top)) + 1)
    return ["path", *(name for n in places for name in (f"label{n}", f"p{n}"))]


def _percent(probability: float | None) -> str:
    return "–" if probability is None else f"{probability:.4f}"
