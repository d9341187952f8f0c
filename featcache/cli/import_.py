"""featcache import."""

from __future__ import annotations

import click

from featcache.cli.console import note
from featcache.cli.options import DataOptions, cache_option, data_options, with_log
from featcache.errors import counted


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@data_options
@click.option("--as", "called", required=True, metavar="NAME", help="What the block is called, after import: as a backbone is.")  # fmt: skip
@click.option("--origin", default="unknown", show_default=True, metavar="TEXT", help="Where the vectors come from: network, tool, settings. Part of the key.")  # fmt: skip
@click.option("--vectors", metavar="NAME", help="The array, dataset or column of vectors. [default: features, feats, embeddings, …]")  # fmt: skip
@click.option("--ids", metavar="NAME", help="The array, dataset or column of ids. [default: ids, paths, filenames, …]")  # fmt: skip
@cache_option
@with_log
def import_(
    files: tuple[str, ...],
    images: DataOptions,
    called: str,
    origin: str,
    vectors: str | None,
    ids: str | None,
    cache: str,
    quiet: bool,
) -> None:
    """Take vectors that another tool wrote into the cache, as a block of a data set.

    FILE is .npz, .npy with a .csv of its ids, .parquet with a column of lists, or .h5: one with
    ids in it, or one for each image, whose patches are averaged (a folder stands for all in it).
    An id is an image's path relative to the data's root, its sha256, or the name of its file
    without the ending. Nothing is unpickled.

    \b
    Example:
      featcache import clip.npz --data photos --as clip --origin "open_clip ViT-B-32 laion2b"
      featcache import vectors.npy ids.csv --data photos --as dino
      featcache import features_uni/ --data slides.csv --as uni --origin "UNI, TRIDENT, 20x"
    """
    from featcache.cli.options import names_data_set
    from featcache.fitting.checks import check_features
    from featcache.store.cache import Cache
    from featcache.store.importing import images_for, import_vectors
    from featcache.store.vector_files import read_vectors

    store = Cache(cache)
    found = read_vectors(files, vectors, ids)
    if images.data is None or names_data_set(store, images.data):
        known = store.images(images.data or images.name)
    else:
        known = images_for(store, images.open(cache))
    note(known.describe())
    done = import_vectors(store, known, found, called, origin)
    entries = store.choose(known.name, [f"{done.key.backbone}@{done.key.digest}"])
    check_features(store.features(known, entries), "warn")
    what = "imported" if done.new else "nothing to import"
    click.echo(f"{done.key.backbone}: {done.path}, {counted(done.rows, 'vector')}, {what}")
    if done.left_out:
        note(f"{counted(done.left_out, 'vector')} of images that are not in {known.name} left out")
