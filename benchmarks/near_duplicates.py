"""Which planted near duplicates are found by features, by dHash and by both; and what else is.

    python benchmarks/near_duplicates.py path/to/images --weights-dir weights --backbone resnet18

For each kind of change, copies of other images are planted among all, changed so and saved as PNG
(JPEG where the change is JPEG's). Then all are extracted and searched, as between folds. What is
found besides is the data's own, or wrong: `--sheet` draws it, to be judged by eye.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from featcache.extraction.extract import extract
from featcache.fitting.near_duplicates import hash_pairs, near_pairs
from featcache.images.files import list_images

Change = Callable[[Image.Image], Image.Image]
BICUBIC = Image.Resampling.BICUBIC
SIDE = 96  # pixels of a picture on the sheet


def scaled(image: Image.Image, by: float) -> Image.Image:
    size = (max(1, round(image.width * by)), max(1, round(image.height * by)))
    return image.resize(size, BICUBIC)


def brighter(image: Image.Image, by: float) -> Image.Image:
    return image.point(lambda value: min(255, round(value * by)))


def shifted(image: Image.Image, by: float) -> Image.Image:
    """To the right by a share of the width, at least a pixel; the edge is repeated."""
    pixels, step = np.asarray(image), max(1, round(image.width * by))
    return Image.fromarray(np.concatenate([pixels[:, :1].repeat(step, 1), pixels[:, :-step]], 1))


def cropped(image: Image.Image, by: float) -> Image.Image:
    """Without a margin of so much of the width, enlarged to the old size."""
    step = max(1, round(image.width * by))
    box = (step, step, image.width - step, image.height - step)
    return image.resize(image.size, BICUBIC, box)


def noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 5, np.asarray(image).shape)
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


KINDS: dict[str, Change] = {
    "JPEG, quality 75": lambda image: image,
    "half the size": lambda image: scaled(image, 0.5),
    "10 % brighter": lambda image: brighter(image, 1.1),
    "20 % darker": lambda image: brighter(image, 0.8),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "noise of 5 grey levels": noisy,
    "shifted by 2 %": lambda image: shifted(image, 0.02),
    "shifted by 5 %": lambda image: shifted(image, 0.05),
    "cropped by 3 %": lambda image: cropped(image, 0.03),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by 90°": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "mirrored, JPEG of half size": lambda image: scaled(
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 0.5
    ),
}


def plant(source: Path, folder: Path, limit: int, copies: int) -> dict[str, dict[str, str]]:
    """Images and copies of some; for each kind the id of each copy, and of its original."""
    rng = np.random.default_rng(0)
    names = rng.permutation(list_images(source))[:limit].tolist()
    for name in names:
        path = folder / "0" / name.replace("/", "_")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((source / name).read_bytes())
    copies = min(copies, len(names) // len(KINDS))
    found: dict[str, dict[str, str]] = {}
    for number, (kind, change) in enumerate(KINDS.items()):
        for name in names[number * copies : (number + 1) * copies]:
            jpeg = "JPEG" in kind
            name = name.replace("/", "_")
            copy = f"1/{number}_{Path(name).stem}.{'jpg' if jpeg else 'png'}"
            (folder / copy).parent.mkdir(exist_ok=True)
            with Image.open(folder / "0" / name) as image:
                made = change(image.convert("RGB"))
            made.save(folder / copy, **({"quality": 75} if jpeg else {}))
            found.setdefault(kind, {})[copy] = f"0/{name}"
    return found


def draw(path: Path, folder: Path, pairs: list[tuple[str, str, str]]) -> None:
    """A sheet of pairs of images, each with a few words."""
    columns = 6
    size = (columns * (2 * SIDE + 12), -(-len(pairs) // columns) * (SIDE + 16))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for place, (words, *names) in enumerate(pairs):
        x, y = place % columns * (2 * SIDE + 12), place // columns * (SIDE + 16)
        pen.text((x, y), words, fill="black")
        for i, name in enumerate(names):
            with Image.open(folder / name) as image:
                sheet.paste(image.convert("RGB").resize((SIDE, SIDE)), (x + i * SIDE, y + 14))
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--weights-dir")
    parser.add_argument("--backbone", nargs="+", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--limit", type=int, default=10_000, help="images")
    parser.add_argument("--copies", type=int, default=60, help="of each kind")
    parser.add_argument("--cache", help="one that has vectors already; it grows")
    parser.add_argument("--sheet", type=Path, help="a PNG of what was found besides")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "images"
        planted = plant(args.images, folder, args.limit, args.copies)
        features = extract(
            folder,
            backbone=args.backbone,
            cache=args.cache or f"{work}/cache",
            weights_dir=args.weights_dir,
            dhash=True,
        )
        rows = np.arange(len(features))
        vectors = near_pairs(features.X, features.blocks, rows)
        hashes = hash_pairs(features.dhash, rows)
        looks = [
            {frozenset(features.ids[pair].tolist()) for pair in pairs}
            for pairs in (vectors.pairs, hashes.pairs)
        ]
        looks.append(looks[0] | looks[1])
        print(f"{len(features):,} images, cosine {vectors.least:.2f}, {hashes.most} bits\n")
        print("| change | features | dHash | either |\n|---|---|---|---|")
        own: set[frozenset[str]] = set()
        for kind, copies in planted.items():
            pairs = {frozenset(pair) for pair in copies.items()}
            own |= pairs
            counts = [f"{len(pairs & look)} of {len(pairs)}" for look in looks]
            print(f"| {kind} | {' | '.join(counts)} |")
        # A copy of one of the data's own near duplicates is near the other one too.
        original = {copy: one for copies in planted.values() for copy, one in copies.items()}
        besides = [
            {tuple(sorted({original.get(name, name) for name in pair})) for pair in look - own}
            for look in looks
        ]
        print("| besides | " + " | ".join(str(len(one)) for one in besides) + " |")
        if args.sheet:
            words = {(True, False): "features", (False, True): "dHash", (True, True): "both"}
            shown = [
                (words[pair in besides[0], pair in besides[1]], pair[0], pair[-1])
                for pair in sorted(besides[2])
            ]
            draw(args.sheet, folder, shown[:180])


if __name__ == "__main__":
    main()
