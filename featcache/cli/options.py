"""Options that several commands share, under the names that recipes and the API use too.

And what they open: features and images of the cache, a cluster, an executor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from featcache.cli.completion import (
    backbones,
    completer,
    data_sets,
    folders,
    nothing,
    selections,
    views,
)
from featcache.cli.console import note
from featcache.errors import CacheMissing, DataError, RecipeError, unknown
from featcache.images.files import KINDS, SourceOptions

if TYPE_CHECKING:
    from featcache.extraction.extract import Embed
    from featcache.fitting.executor import Executor
    from featcache.images.manifest import Images
    from featcache.scaling.cluster import Cluster
    from featcache.store.cache import Cache
    from featcache.store.features import Features

F = TypeVar("F", bound=Callable[..., Any])


class NumberOrAuto(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A positive number, or "auto"."""

    name = "N|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if isinstance(value, int) or value == "auto":
            return "auto" if value == "auto" else int(value)
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a positive number nor auto", param, ctx)
        return int(value)


def _names(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> list[str]:
    """`--head a,b --head c` as [a, b, c]."""
    return [name.strip() for part in value for name in part.split(",") if name.strip()]


def _settings(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, Any]:
    """`--set head.hidden=512` as {"head.hidden": 512}."""
    import yaml

    from featcache.fitting.names import as_numbers

    found = {}
    for text in value:
        name, equals, plain = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", ctx, param)
        try:
            found[name.strip()] = as_numbers(yaml.safe_load(plain))
        except (yaml.YAMLError, ValueError):  # ValueError: no such day, as in 2020-99-99
            raise click.BadParameter(f"{plain!r} is no YAML value", ctx, param) from None
    return found


# As in fitting.metrics.METRICS, which takes scikit-learn to import.
METRIC_NAMES = ("accuracy", "balanced_accuracy", "f1", "f1_positive", "auc", "log_loss", "brier")


def _metric(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A metric's name."""
    if value not in METRIC_NAMES:
        raise unknown("metric", value, METRIC_NAMES)
    return value


def _columns(ctx: Any, param: Any, value: tuple[str, ...]) -> dict[str, str]:
    """`--columns path=Path,label=Class` as {"path": "Path", "label": "Class"}."""
    pairs = [part.partition("=") for text in value for part in text.split(",") if part]
    if any(not role.strip() or not name.strip() for role, _, name in pairs):
        raise click.BadParameter("write path=NAME,label=NAME", ctx, param)
    return {role.strip(): name.strip() for role, _, name in pairs}


def _reports(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A folder, no URL."""
    from featcache.images.remote import need_folder

    need_folder(value, "the reports folder")
    return value


def several(*names: str, **attributes: Any) -> Callable[[F], F]:
    """An option that may be repeated and may hold a comma-separated list."""
    return click.option(*names, multiple=True, callback=_names, metavar="NAME", **attributes)


def one_of(option: str, names: Callable[..., Any], default: str, help: str) -> Callable[[F], F]:
    """An option that takes one name, completed from `names`."""
    return click.option(
        option, shell_complete=completer(names), default=default, show_default=True,
        metavar="NAME", help=help,
    )  # fmt: skip


def _stack(options: list[Callable[[F], F]]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def with_log(command: F) -> F:
    """Add --quiet, and set up logging before the command starts."""

    @click.option("-q", "--quiet", is_flag=True, help="Only warnings and results.")
    @wraps(command)
    def wrapped(*args: Any, quiet: bool, **kwargs: Any) -> Any:
        from featcache.cli.console import set_up_logging

        set_up_logging(quiet)
        return command(*args, quiet=quiet, **kwargs)

    return wrapped  # type: ignore[return-value]


_data_options = _stack([
    click.option("--data", metavar="SPEC", shell_complete=completer(data_sets, files=True), help="digits; a folder (class/*.jpg or train|val|test/class/*.jpg); a CSV or Parquet file (path,label[,split][,group]); the URL of either (s3://bucket/photos); torchvision:CIFAR10; cnmc:FOLDER, the C-NMC 2019 data; series:FILE[:method=mtf|gasf|gadf], time series as images."),
    click.option("--name", metavar="NAME", help="The data set's name in the cache; by default the folder's."),
    click.option("--data-root", metavar="FOLDER", shell_complete=folders, help="What a table's paths are relative to; where torchvision keeps its data."),
    click.option("--columns", multiple=True, callback=_columns, metavar="path=NAME,label=NAME", help="What a table calls its columns path, label, split and group; their case doesn't matter."),
    click.option("--class-map", metavar="FILE", shell_complete=completer(nothing, files=True), help="Readable names for labels: a CSV file of two columns, or JSON."),
    click.option("--group", metavar="COLUMN", help="Images that must stay on one side of a split: a table's column, 'parent' for an image's folder, 'subject' for the data's groups, 'image' for equal images only."),
])  # fmt: skip


@dataclass(frozen=True)
class DataOptions:
    """Which images are meant, as the command line says it; see `open_images`."""

    data: str | None = None
    name: str | None = None
    data_root: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    class_map: str | None = None
    group: str | None = None

    @property
    def kind(self) -> str | None:
        """The kind of group, if --group names no column of a table."""
        return self.group if self.group in KINDS else None

    @property
    def column(self) -> str | None:
        """The table's column of groups, if --group names one."""
        return None if self.group in KINDS else self.group

    def open(self, cache: str, *, rehash: bool = False, download: bool = True) -> Images:
        """The images; the digits if nothing is named."""
        from featcache.images.sources import open_images

        return open_images(
            "digits" if self.data is None else self.data, name=self.name, data_root=self.data_root,
            group=self.group, cache=cache, rehash=rehash, download=download, columns=self.columns,
            class_map=self.class_map,
        )  # fmt: skip

    def opened(self, cache: str) -> list[str]:
        """The options that open the images again; [] if `cached_features` asks the cache alone."""
        from featcache.store.cache import Cache

        in_cache = self.data is not None and names_data_set(Cache(cache), self.data)
        if self.data is None or (in_cache and self.column is None):
            return []
        rest = SourceOptions(
            source=self.data, root=self.data_root, group=self.group, columns=self.columns,
            class_map=self.class_map,
        ).words  # fmt: skip
        return ["--data", self.data, *(["--name", self.name] if self.name else []), *rest]


def data_options(command: F) -> F:
    """Add the options that say which images; the command takes them as one, `images`."""

    @_data_options
    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        named = {one.name: kwargs.pop(one.name) for one in fields(DataOptions)}
        return command(*args, images=DataOptions(**named), **kwargs)

    return wrapped  # type: ignore[return-value]


backbone_option = several(
    "--backbone", shell_complete=completer(backbones, commas=True), help="A backbone's name, with options of its own as in vit_b_16:size=384:colour=hsv (size, layer, pool, layers, weights, colour, filter, scale); repeat it, or separate by commas. See: featcache backbones."
)  # fmt: skip

extract_options = _stack([
    several("--view", shell_complete=completer(views, commas=True), help="Also the images flipped or turned, as further files: hflip, vflip, rot90, rot180, rot270."),
    click.option("--weights", default="auto", show_default=True, metavar="WHICH", help="auto, a tag, a .pth or .safetensors file, random[:SEED], or a run folder that fine-tuned it."),
    click.option("--weights-dir", metavar="FOLDER", shell_complete=folders, help="A folder of weight files, searched first. [default: $FEATCACHE_WEIGHTS]"),
    click.option("--layer", default="penultimate", show_default=True, metavar="NAME", help="Whose output to take; maps are averaged over positions."),
    click.option("--pool", default="own", show_default=True, metavar="HOW", help="How the last map or tokens become a vector: own, cls, mean, cls+mean, max, gem, mean+max."),
    click.option("--layers", default="last", show_default=True, metavar="-N..-M", help="Join the class tokens of these blocks of a vision transformer, as -4..-1; -1 is the last."),
    click.option("--image-size", type=click.IntRange(1), metavar="N", help="Side of the square that the network sees, in pixels; by default its own."),
    click.option("--colour", metavar="SPACE", help="What the network sees of the pixels: rgb, hsv, lab, ycbcr or grey. [default: rgb]"),
    click.option("--filter", metavar="NAME[+NAME]", help="For the whole image, before it is resized: equalise, gaussian-SIGMA, log-SIGMA, or none. [default: none]"),
    click.option("--scale", metavar="HOW", help="own, the normalisation that the weights were trained with, or 0-1. [default: own]"),
    click.option("--device", default="auto", show_default=True, metavar="WHERE", help="auto, cpu, cuda or cuda:1."),
    click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]), default="auto", show_default=True, help="What the network computes in; int8 needs featcache[int8], on the processor."),
    click.option("--engine", type=click.Choice(["auto", "eager", "compile", "openvino"]), default="auto", show_default=True, help="How the network is run."),
    click.option("-b", "--batch-size", type=NumberOrAuto(), default="auto", show_default=True, help="Images in a forward pass."),
    click.option("-j", "--workers", type=NumberOrAuto(), default="auto", show_default=True, help="Threads that read and decode."),
])  # fmt: skip

metric_option = click.option("--metric", callback=_metric, default="accuracy", show_default=True, metavar="NAME", help="What candidates are ranked and tested by: accuracy, balanced_accuracy, f1, f1_positive, auc, log_loss or brier.")  # fmt: skip

fit_options = _stack([
    click.option("--folds", type=click.IntRange(2), metavar="K", help="Stratified K-fold. [default: the data's test split, else 5]"),
    click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, metavar="R", help="K-fold R times, shuffled anew each time."),
    click.option("--test-split/--no-test-split", default=None, help="Insist on the data's own split, or don't use it."),
    several("--view", shell_complete=completer(views, commas=True), help="Views that train beside their images: hflip,rot90,… They must be in the cache."),
    click.option("--balance", is_flag=True, help="Of the views take only what brings each class to the most frequent one's count."),
    click.option("--leaky", is_flag=True, help="Redo a protocol that splits views, equal images and groups as if they stood alone."),
    click.option("--strict", is_flag=True, help="Refuse leaks between training and test images, rather than warn."),
    click.option("--near-duplicates/--no-near-duplicates", default=True, help="Look for near duplicates across the split."),
    click.option("--set", "settings", multiple=True, callback=_settings, metavar="NAME=VALUE", help="A parameter, for instance head.hidden=512 or attention.dim=64."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of folds and training."),
    click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Fit with N seeds on the same folds, N times as long, and report the mean and spread."),
    click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Folds fitted at the same time."),
    click.option("--memory", default="auto", show_default=True, metavar="auto|SIZE", help="What a fit may take, for instance 8GB; features that it would not fit into stay on disk."),
    click.option("--gate", type=click.Choice(["refuse", "warn", "off"]), default="refuse", show_default=True, help="What to do about features that look broken."),
    click.option("--select", default="", shell_complete=completer(selections), metavar="NAME[:N]", help="Columns that the head sees: anova:256, mutual:256, variance:256, pca:0.95 or nsga."),
    click.option("--calibrate/--no-calibrate", default=True, help="Probabilities with a temperature learned on held-out rows, or raw (mlp, lda, vote)."),
    metric_option,
    click.option("--positive", metavar="LABEL", help="The positive one of two classes. [default: the last by the alphabet]"),
    click.option("--tune", type=click.IntRange(0), default=0, metavar="N", help="Try N settings in an inner loop on the training rows."),
    click.option("--tuner", type=click.Choice(["random", "optuna"]), default="random", show_default=True, help="How --tune draws them."),
    click.option("--again", is_flag=True, help="Fit even what was run before."),
    click.option("--report/--no-report", default=True, help="Draw plots and pages, or write run folders and tables only."),
])  # fmt: skip

pictures_option = click.option("--pictures/--no-pictures", default=True, help="Show some test images in report.html.")  # fmt: skip
set_option = click.option("--set", "settings", multiple=True, callback=_settings, metavar="NAME=VALUE", help="A parameter of fusion or head, for instance head.hidden=512 or attention.dim=64.")  # fmt: skip
cache_option = click.option("--cache", default="cache", shell_complete=folders, show_default=True, metavar="FOLDER", help="The cache folder.")  # fmt: skip
reports_option = click.option("--reports", default="reports", shell_complete=folders, show_default=True, callback=_reports, metavar="FOLDER", help="The reports folder.")  # fmt: skip

dask_option = click.option("--dask", metavar="WHERE", help="Let Dask workers do it: tcp://host:8786, a scheduler file, local:N for N processes here, or local:gpus for one for each GPU.")  # fmt: skip
parts_option = click.option("--parts", metavar="URL", help="Where Dask workers leave what they have embedded, for instance s3://bucket/parts. [default: the cache folder, which they must share]")  # fmt: skip


@contextmanager
def cluster_at(where: str | None) -> Iterator[Cluster | None]:
    """The cluster that --dask names, None without it."""
    if where is None:
        yield None
        return
    from featcache.scaling.cluster import Cluster

    with Cluster(where) as cluster:
        yield cluster


def embedding(cluster: Cluster | None, data_root: str | None, parts: str | None = None) -> Embed:
    """Who embeds: what `fill_cache` takes as `embed`."""
    if cluster is None:
        from featcache.extraction.extract import embed_here

        return embed_here
    from featcache.scaling.executors import embed_on

    return embed_on(cluster, data_root, parts=parts or "")


def executor_at(cluster: Cluster | None) -> Executor | None:
    """The cluster as an executor, which `compare` takes as `crew`; None without one."""
    if cluster is None:
        return None
    from featcache.scaling.executors import DaskExecutor

    return DaskExecutor(cluster)


def fits_here(cluster: Cluster | None, jobs: int) -> int:
    """How many fits share this machine's memory."""
    return jobs if cluster is None else max(1, cluster.here)


def check_parts(parts: str | None, dask: str | None) -> None:
    """Refuse what --parts can't be, or where nothing can be written, before any work is done."""
    if parts is None:
        return
    from featcache.images.remote import is_url
    from featcache.scaling.transport import open_transport

    if dask is None:
        raise click.UsageError("--parts goes with --dask: without workers nothing travels")
    if not is_url(parts):
        raise click.UsageError(f"--parts {parts} is no URL. For instance --parts s3://bucket/parts")
    open_transport(parts, Path(), "featcache").check({})


def cached_features(
    images: DataOptions,
    backbone: Sequence[str],
    cache: str,
    view: Sequence[str] = (),
    memory: str | None = None,
    jobs: int = 1,
) -> Features:
    """Load features from the cache.

    Without --data, of the one data set that is there; with it, of that one, with labels, splits
    and groups as they are now. With `memory`, what they would not fit into stays on disk, see
    `store.memory_budget`; without it they are loaded.
    """
    from featcache.extraction.preprocess import check_views
    from featcache.store.cache import Cache
    from featcache.store.memory_budget import load, parse_memory

    # Before anything is read.
    if view:
        check_views(view)
    if memory is not None:
        parse_memory(memory)
    store, column = Cache(cache), images.column
    if images.data is None or (names_data_set(store, images.data) and column is None):
        if column is not None:
            raise RecipeError(
                f"--group {column} needs the table that has this column", "Pass it with --data."
            )
        known = store.images(images.data or images.name)
    else:
        known = images.open(cache, download=False)
    try:
        entries = store.choose(known, backbone, view)
    except CacheMissing:
        _refuse_unknown(backbone)
        raise
    note(known.describe())
    for entry in entries:
        note(f"{entry.selector}: {entry.path}, {entry.dim} wide")
    if memory is None:
        return store.features(known, entries, view)
    return load(store, known, entries, view, memory, jobs)


def names_data_set(store: Cache, data: str) -> bool:
    """Whether --data is the name of a data set in the cache, and no file or folder."""
    return data in store.data_sets() and not Path(data).exists()


def images_as_they_are(store: Cache, data: str | None = None, rehash: bool = False) -> Images:
    """The images of a data set of the cache, by default of its only one.

    Opened anew where they were; where they are not found there, as they were extracted. A URL
    that the cache holds isn't called: it may be somebody else's.
    """
    from featcache.images.remote import is_url, without_secrets
    from featcache.images.sources import is_named, open_images, read_origin
    from featcache.images.table import TABLES
    from featcache.images.timeseries import is_there

    known = store.images(data)
    origin = read_origin(store.folder / known.name)
    source, root, _ = origin
    for url in (source, root):
        if is_url(url) and not is_named(url, ()):
            note(
                f"{known.name}: its images are at {without_secrets(url)}, which is called only "
                "if you name it; taking the list in the cache"
            )
            return known
    class_map = origin.option("--class-map") or None
    if class_map and not Path(class_map).is_file():
        note(f"{known.name}: its class map {class_map} is not there; taking the list in the cache")
        return known
    is_table = Path(source).suffix.lower() in TABLES
    if is_table and (is_url(source) or Path(source).is_file()):
        where, data_root = source, root or None
    elif root and (is_url(root) or Path(root).is_dir()) and not is_table:
        where = f"cnmc:{root}" if source.startswith("cnmc:") else root
        data_root = None
    elif source == "digits" or is_there(source):
        where, data_root = source, None
    else:
        note(f"{known.name}: its images are not where they were; taking the list in the cache")
        return known
    return open_images(
        where,
        name=known.name,
        data_root=data_root,
        cache=store.folder,
        rehash=rehash,
        download=False,
        columns=_columns(None, None, (origin.option("--columns"),)) if is_table else {},
        class_map=class_map,
    )


def readable_images(store: Cache, data: str | None) -> Images:
    """`images_as_they_are`, refused where the images themselves are not found."""
    images = images_as_they_are(store, data)
    if not images.can_read:
        raise DataError(
            f"the images of {images.name} are not where they were", "Say where with --source."
        )
    return images


def _refuse_unknown(backbone: Sequence[str]) -> None:
    """Raises UnknownName for what no extraction could be asked for."""
    from featcache.extraction.registry import family_of
    from featcache.store.spec import IMPORTED, parse_spec, split_key

    for wanted in backbone:
        if not wanted.startswith(IMPORTED):
            family_of(parse_spec(split_key(wanted)[0]).name)
