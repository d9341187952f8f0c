"""Hub: weight files on the Hugging Face hub, where that library keeps them and fetches them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import first_line
from featcache.extraction.weights import Published

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class OnHub(Published):
    """A weight file on the Hugging Face hub; safetensors only.

    Attributes
    ----------
    stem : str
        Its name in a folder of weights, without its ending: "timm.resnet18.a1_in1k".
    repository : str
        For instance "timm/resnet18.a1_in1k".
    revision : str or None
        A branch, tag or commit of the repository; None for the main branch.
    member : str
        The file's name in the repository.
    """

    stem: str
    repository: str
    revision: str | None
    member: str

    @property
    def file(self) -> str:
        """Its name in a folder of weights."""
        return f"{self.stem}.safetensors"

    @property
    def place(self) -> Path:
        """The hub's cache on this machine."""
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE)

    def kept(self) -> Path | None:
        """The file in the hub's cache, if it is there."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repository, self.member, revision=self.revision)
        return Path(found) if isinstance(found, str) else None

    def expected(self, path: Path) -> str:
        """The sha256 by which the hub's cache names what it keeps; "" for a file elsewhere."""
        kept = path.resolve().name
        return kept if _SHA256.fullmatch(kept) else ""

    def fetch(self) -> Path:
        """Download it into the hub's cache.

        Raises
        ------
        OSError
        """
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.repository, self.member, revision=self.revision))
        except Exception as error:  # what its ways of transport raise has no common base
            raise OSError(first_line(error)) from None


def on_hub(tag: str, stem: str, address: str, member: str) -> OnHub | None:
    """A file on the hub, or its twin in safetensors where it is a pickle; None without one.

    Parameters
    ----------
    tag, stem : str
        See `OnHub`.
    address : str
        "repository" or "repository@revision".
    member : str
        The file's name there; "" for the usual one.
    """
    twins = {"": "model.safetensors", "pytorch_model.bin": "model.safetensors",
             "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}  # fmt: skip
    safe = twins.get(member, re.sub(r"\.bin$", ".safetensors", member))
    if not safe.endswith(".safetensors"):
        return None
    repository, _, revision = address.partition("@")
    url = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{safe}"
    return OnHub(tag, url, stem, repository, revision or None, safe)
