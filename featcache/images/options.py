"""Options: what every source of images may want to know besides its own argument."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featcache.errors import UnknownData

# Words that say how to split, and no column: by equal images alone, or by the data's own groups.
KINDS = ("image", "subject")


@dataclass(frozen=True)
class Options:
    """What `open_images` was asked besides the source.

    Attributes
    ----------
    source : str
        What the user named.
    name : str or None
        The data set's name.
    root : Path, str or None
        The folder, or its URL, that a table's paths are relative to; or the folder where
        torchvision keeps its data.
    group : str or None
        What says which images belong together.
    cache : Path or None
        The cache folder, which knows the digests of unchanged files.
    rehash : bool
        Take every digest again.
    download : bool
        Let torchvision download a data set that is not there.
    """

    source: str
    name: str | None = None
    root: Path | str | None = None
    group: str | None = None
    cache: Path | None = None
    rehash: bool = False
    download: bool = True

    @property
    def words(self) -> tuple[str, ...]:
        """What was asked besides source and name, as options of the command line."""
        column = None if self.group in KINDS else self.group
        asked = {"--data-root": self.root, "--group": column}
        return tuple(str(word) for pair in asked.items() if pair[1] for word in pair)

    def refuse_group(self, kind: str) -> None:
        """For a source that has no columns to group by."""
        if self.group not in (None, *KINDS):
            raise UnknownData(
                f"{kind} has no column {self.group!r} to group by",
                "Groups by column need a CSV or Parquet file: path,label,group.",
            )
