"""Precision: fp32 or bf16, settled for each backbone.

"auto" goes on in the precision that the data set's features are in already. Where there are none
yet it takes bf16 on hardware that computes in it, if the network bears it: the canary embeds the
first images in fp32 too, and compares.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from featcache.extraction.backbone import Backbone
from featcache.extraction.content import Content
from featcache.extraction.engine import AUTO, Engine, native_bf16
from featcache.extraction.network import Network
from featcache.extraction.sample import cosine, load_sample, spread
from featcache.store.cache import Cache

log = logging.getLogger("featcache")

CANARY = 0.999  # least cosine between a fast vector and the fp32 one
_SAMPLE = 16  # images of the canary


@dataclass(frozen=True)
class Settled:
    """How a backbone is run.

    Attributes
    ----------
    engine : Engine
        With a precision.
    fidelity : float or None
        The canary's least cosine; None where none was needed.
    network : Network or None
        The one that the canary has built, if it goes on with it.
    """

    engine: Engine
    fidelity: float | None = None
    network: Network | None = None


def settle(engine: Engine, backbone: Backbone, store: Cache, content: Content) -> Settled:
    """Settle the precision that "auto" means for this backbone on these images."""
    likely = likely_precision(engine, backbone, store, content)
    if likely == "fp32" or store.has(content.images.name, backbone.key(likely)):
        return Settled(replace(engine, precision=likely))
    return _try_fast(engine, backbone, content)


def settle_all(
    engine: Engine, backbones: Sequence[Backbone], store: Cache, content: Content
) -> list[Settled]:
    """`settle` for each; views of one backbone share its canary and its network."""
    done: dict[str, Settled] = {}
    found = []
    for backbone in backbones:
        plain = replace(backbone, preprocess=replace(backbone.preprocess, view="none"))
        known = done.get(plain.key().digest)
        likely = likely_precision(engine, backbone, store, content)
        began = store.has(content.images.name, backbone.key(likely))
        if known is None or (began and likely != known.engine.precision):
            known = settle(engine, backbone, store, content)
            done.setdefault(plain.key().digest, known)
        found.append(known)
    return found


def likely_precision(engine: Engine, backbone: Backbone, store: Cache, content: Content) -> str:
    """What `settle` comes to if the network bears it.

    "auto" is the precision of the features that are there, of several the one with the fewest
    images missing; else bf16 where the device computes in it.
    """
    if engine.precision != AUTO:
        return engine.precision
    allowed = ("fp32", "bf16")
    data = content.images.name
    missing = {
        name: int(store.missing(data, backbone.key(name), content.digests).sum())
        for name in allowed
        if store.has(data, backbone.key(name))
    }
    if missing:
        return min(missing, key=lambda name: missing[name])
    return "bf16" if native_bf16(engine.device) else "fp32"


def _try_fast(engine: Engine, backbone: Backbone, content: Content) -> Settled:
    precision = "bf16" if engine.precision == AUTO else engine.precision
    rows = spread(content.rows, _SAMPLE)
    pixels, _ = load_sample(content.images, rows, backbone.preprocess)
    if not len(pixels):  # nothing that decodes: extraction will say so
        return Settled(replace(engine, precision=precision))
    slow = replace(engine, precision="fp32", kind="eager", batch_size=len(pixels))
    exact = slow.load(backbone).run(pixels)  # (n, d)
    kind = engine.for_images(len(content.rows))
    least = -1.0
    for one in dict.fromkeys((kind, "eager")):  # eager keeps more of the precision than others
        network = replace(engine, precision=precision, kind=one).load(backbone)
        least = float(cosine(exact, network.run(pixels)).min())
        if least >= CANARY:
            ready = replace(engine, precision=precision, kind=network.kind)
            return Settled(ready, least, network)
    if engine.precision != AUTO:
        log.warning("%s in %s differs from fp32: cosine %.4f", backbone.name, precision, least)
        return Settled(engine, least)
    log.warning(
        "%s in %s differs from fp32 (cosine %.4f, at least %s is wanted): computing in fp32",
        backbone.name, precision, least, CANARY,
    )  # fmt: skip
    return Settled(replace(engine, precision="fp32"), least)
