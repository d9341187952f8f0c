"""Coverage: how many images of a data set have a vector, in the words that every command uses."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.errors import counted
from featcache.images.manifest import Images


@dataclass(frozen=True)
class Coverage:
    """How many images of a data set have a vector.

    Attributes
    ----------
    found : int
        Images in the manifest, whatever is wrong with them.
    embedded : int
        Those that have a vector.
    distinct : int
        Different contents among these: equal images share one vector.
    failed : int
        Those without, because they can't be decoded.
    """

    found: int
    embedded: int
    distinct: int
    failed: int

    @classmethod
    def of(cls, images: Images, there: NDArray[np.bool_], failed: Container[str]) -> Coverage:
        """Count.

        Parameters
        ----------
        images : Images
        there : bool array of shape (n,)
            Which of them have a vector.
        failed : container of str
            sha256 of what can't be decoded.
        """
        absent = images.sha256[~there].tolist()
        return cls(
            found=len(images),
            embedded=int(there.sum()),
            distinct=len(set(images.sha256[there].tolist())),
            failed=sum(sha256 in failed for sha256 in absent),
        )

    @property
    def missing(self) -> int:
        """Images that an extraction would embed."""
        return self.found - self.embedded - self.failed

    def __str__(self) -> str:
        if self.found == self.distinct:
            return counted(self.found, "image")
        repeats = f" ({self.distinct:,} distinct)" if self.distinct < self.embedded else ""
        parts = [f"{self.embedded:,} embedded{repeats}"]
        parts += [f"{self.failed:,} failed"] if self.failed else []
        parts += [f"{self.missing:,} missing"] if self.missing else []
        return f"{counted(self.found, 'image')}: {', '.join(parts)}"
