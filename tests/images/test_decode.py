import contextlib
import io
import random
import struct
import zlib

import numpy as np
import pytest
from noise import noise
from PIL import Image

from featcache.images import decode as decode_module
from featcache.images.decode import BadImage, decode, reduction
from featcache.images.files import SUFFIXES


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(content, alpha="white"):
    image = decode(content, alpha)
    assert image.mode == "RGB"
    return np.asarray(image)


def ramp(dtype, top):
    return np.linspace(0, top, 64).reshape(8, 8).astype(dtype)


GREY = np.rint(np.linspace(0, 255, 64)).reshape(8, 8)


def as_rgb(grey):
    return np.repeat(np.asarray(grey)[..., None], 3, axis=2)


# What a camera does to an upright picture before it notes orientation 1 … 8 (EXIF 2.3, 4.6.4).
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation, kind):
    upright = np.asarray(noise(1))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.fromarray(np.ascontiguousarray(TURNED[orientation](upright)))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(pixels(saved(turned, kind, exif=exif, **options)), upright)


def test_exif_orientation_of_jpeg():
    upright = noise(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    got = pixels(saved(turned, "JPEG", quality=98, subsampling=0, exif=exif)).astype(int)
    assert np.abs(got - np.asarray(upright)).max() < 12


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_the_image_as_it_is():
    image = noise(1)
    data = saved(image, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(pixels(data), np.asarray(image))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    got = pixels(saved(Image.fromarray(ramp(np.uint16, 65535)), kind))
    assert np.abs(got - as_rgb(GREY)).max() <= 1
    assert len(np.unique(got)) > 60


def test_16_bit_big_endian_tiff():
    tags = [(256, 3, 8), (257, 3, 8), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 0),
            (277, 3, 1), (278, 3, 8), (279, 4, 128)]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    body = struct.pack(">H", len(tags))
    for tag, kind, value in tags:
        value = start if tag == 273 else value
        body += struct.pack(">HHI", tag, kind, 1)
        body += struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value)
    data = b"MM\0*" + struct.pack(">I", 8) + body + bytes(4)
    data += ramp(">u2", 65535).tobytes()
    assert np.abs(pixels(data) - as_rgb(GREY)).max() <= 1


def test_16_bit_colour_png_keeps_its_high_bytes():
    values = np.random.default_rng(0).integers(0, 65536, (4, 5, 3)).astype(">u2")

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(
            ">I", zlib.crc32(name + body))  # fmt: skip

    rows = b"".join(b"\0" + row.tobytes() for row in values)
    data = (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))  # fmt: skip
    assert np.abs(pixels(data) - values / 257).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (ramp(np.float32, 1), GREY),
        (ramp(np.float32, 1) * 800 - 100, GREY),
        (ramp(np.int32, 65535), GREY),
        (ramp(np.int32, 1_000_000) - 5000, GREY),
        (np.full((8, 8), 7e4, np.float32), np.zeros((8, 8))),
    ],
    ids=["float 0..1", "float wider", "int32 in 16 bits", "int32 wider", "constant"],
)
def test_float_and_32_bit_tiff_are_scaled(values, expected):
    got = pixels(saved(Image.fromarray(values), "TIFF"))
    assert np.abs(got - as_rgb(expected)).max() <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_float_tiff_with_nan_or_infinity_is_bad(bad):
    values = ramp(np.float32, 1)
    values[3, 3] = bad
    with pytest.raises(BadImage, match="NaN or infinite"):
        decode(saved(Image.fromarray(values), "TIFF"))


def over(colour, alpha, back):
    return np.rint(colour * alpha / 255 + back * (1 - alpha / 255))


@pytest.mark.parametrize(("alpha", "back"), [("white", 255), ("black", 0)])
def test_alpha_is_laid_over_the_ground(alpha, back):
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    got = pixels(saved(Image.fromarray(rgba), "PNG"), alpha)
    expected = over(rgba[..., :3].astype(float), rgba[..., 3:].astype(float), back)
    assert np.abs(got - expected).max() <= 1
    la = Image.merge("LA", [Image.fromarray(rgba[..., i].copy()) for i in (0, 3)])
    grey = over(rgba[..., 0].astype(float), rgba[..., 3].astype(float), back)
    assert np.abs(pixels(saved(la, "PNG"), alpha) - as_rgb(grey)).max() <= 1


@pytest.mark.parametrize(("alpha", "back"), [("white", 255), ("black", 0)])
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_colour_shows_the_ground(alpha, back, kind):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 0)
    got = pixels(saved(image, kind, transparency=0), alpha)
    assert got[0, 0].tolist() == [back] * 3
    assert got[1, 1].tolist() == [200, 100, 50]


def test_transparent_colour_of_an_rgb_png_shows_the_ground():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (4, 5, 6))
    data = saved(image, "PNG", transparency=(1, 2, 3))
    assert pixels(data).tolist() == [[[255] * 3, [4, 5, 6]]]


def test_opaque_palette_grey_and_1_bit():
    source = noise(2)
    palette = source.quantize(16)
    np.testing.assert_array_equal(pixels(saved(palette, "PNG")), np.asarray(palette.convert("RGB")))
    grey = source.convert("L")
    np.testing.assert_array_equal(pixels(saved(grey, "PNG")), as_rgb(np.asarray(grey)))
    bits = Image.fromarray(np.eye(8, dtype=np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(pixels(saved(bits, "PNG")), as_rgb(np.eye(8) * 255))


def test_cmyk_jpeg_keeps_its_colours():
    rgb = Image.new("RGB", (16, 16), (220, 60, 20))
    got = pixels(saved(rgb.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(got.astype(int) - (220, 60, 20)).max() <= 6


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first(kind):
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(red, kind, save_all=True, append_images=[blue], **options)
    assert np.unique(pixels(data).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


def test_progressive_jpeg_equals_baseline():
    image = noise(3)
    plain, progressive = (saved(image, "JPEG", progressive=p) for p in (False, True))
    np.testing.assert_array_equal(pixels(plain), pixels(progressive))


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (8, 8, 4)])
def test_arrays(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if len(shape) == 3 and shape[2] == 4:
        array[..., 3] = 255
    got = pixels(array)
    np.testing.assert_array_equal(got, as_rgb(array) if array.ndim == 2 else array[..., :3])


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_sizes(size):
    assert decode(saved(Image.new("RGB", size), "PNG")).size == size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"I am a text that somebody called photo.jpg", "known format"),
        (saved(noise(1), "JPEG", quality=98)[:-700], "truncated"),
        (saved(noise(1), "PNG")[:-900], "can't be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "format"),
        (np.zeros((4, 4, 7), np.uint8), "can't be decoded"),
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "program", "array"],
)
def test_what_is_no_image_is_bad(content, message):
    with pytest.raises(BadImage, match=message):
        decode(content)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_decompression_bomb_is_bad(kind):
    data = bytearray(saved(noise(1, 8, 8).quantize(4) if kind == "GIF" else noise(1, 8, 8), kind))
    huge = 60000
    if kind == "PNG":
        data[16:24] = struct.pack(">II", huge, huge)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", huge, huge)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", huge, huge)
    else:
        at = struct.unpack("<I", data[4:8])[0] + 2
        for tag in (0, 12):  # ImageWidth and ImageLength come first
            data[at + tag + 8 : at + tag + 12] = struct.pack("<I", huge)
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(bytes(data))


SEEDS = {
    "JPEG": [(noise(1, 16, 16), {}), (noise(1, 16, 16).convert("CMYK"), {"progressive": True})],
    "PNG": [(noise(1, 16, 16), {}), (noise(1, 16, 16).quantize(8), {"transparency": 1}),
            (Image.fromarray(ramp(np.uint16, 65535)), {})],
    "GIF": [(noise(1, 16, 16), {"save_all": True, "append_images": [noise(2, 16, 16)]})],
    "WEBP": [(noise(1, 16, 16), {}), (noise(1, 16, 16).convert("RGBA"), {"lossless": True})],
    "TIFF": [(noise(1, 16, 16), {"compression": "tiff_lzw"}), (noise(1, 16, 16), {}),
             (Image.fromarray(ramp(np.float32, 1)), {}),
             (noise(1, 16, 16), {"compression": "jpeg"})],
    "BMP": [(noise(1, 16, 16), {}), (noise(1, 16, 16).quantize(8), {})],
    "PPM": [(noise(1, 16, 16), {}), (noise(1, 16, 16).convert("1"), {})],
    "TGA": [(noise(1, 16, 16), {"compression": "tga_rle"})],
    "JPEG2000": [(noise(1, 16, 16), {})],
    "AVIF": [(noise(1, 16, 16), {})],
}  # fmt: skip


def broken(data, rng):
    """One of the ways in which files break: bits flipped, cut, stretched, a hole of zeros."""
    data = bytearray(data)
    way = rng.randrange(4)
    if way == 0:
        for _ in range(rng.choice((1, 1, 4, 20))):
            data[rng.randrange(min(len(data), rng.choice((64, 100_000))))] ^= 1 << rng.randrange(8)
    elif way == 1:
        del data[rng.randrange(len(data)) :]
    elif way == 2:
        at = rng.randrange(len(data))
        data[at:at] = rng.randbytes(rng.randrange(1, 9))
    else:
        at = rng.randrange(len(data))
        data[at : at + 8] = rng.choice((bytes(8), b"\xff" * 8))[: len(data) - at]
    return bytes(data)


def decodes_or_is_bad(data):
    with contextlib.suppress(BadImage):
        image = decode(data)
        assert image.mode == "RGB"
        assert min(image.size) > 0


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd metadata and of large images
@pytest.mark.parametrize("rounds", [250, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", SEEDS)
def test_broken_files_are_bad_and_nothing_worse(kind, rounds, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # keeps the honest ones quick
    rng = random.Random(kind)
    try:
        seeds = [saved(image, kind, **options) for image, options in SEEDS[kind]]
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {kind}")
    for _ in range(rounds):
        decodes_or_is_bad(broken(rng.choice(seeds), rng))


@pytest.mark.filterwarnings("ignore")
def test_random_bytes_are_bad():
    rng = random.Random(0)
    magic = [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*",
             b"RIFF\0\0\0\0WEBP", b"P6\n9 9\n255\n", b"P7\n", b"\0\0\0\x0cjP  \r\n\x87\n",
             b"\0\0\0 ftypavif"]  # fmt: skip
    for i in range(300):
        decodes_or_is_bad(magic[i % len(magic)] + rng.randbytes(rng.randrange(200)))


def photograph(size, seed=0):
    """Smooth shapes and grain, as a JPEG of high quality."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(int)
    grain = rng.integers(-9, 10, pixels.shape)
    image = Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=95)
    return data.getvalue()


@pytest.mark.parametrize(
    ("size", "at_least", "by"),
    [((800, 600), 0, 1), ((800, 600), 601, 1), ((800, 600), 301, 1), ((800, 600), 300, 2),
     ((600, 800), 150, 4), ((800, 600), 100, 4), ((800, 600), 75, 8), ((801, 603), 20, 8)],
)  # fmt: skip
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(size, at_least, by):
    data = photograph(size)
    image = decode(data, at_least=at_least)
    assert image.size == (-(-size[0] // by), -(-size[1] // by))
    assert by == 1 or min(image.size) >= at_least
    if at_least:
        assert reduction(data, at_least) == by


def test_reduced_and_whole_come_to_nearly_the_same_after_resizing():
    data = photograph((1600, 1200))
    small = (200, 150)
    whole = np.asarray(decode(data).resize(small, Image.Resampling.BILINEAR)).astype(int)
    part = np.asarray(decode(data, at_least=600).resize(small, Image.Resampling.BILINEAR))
    assert decode(data, at_least=600).size == (800, 600)
    assert np.abs(part - whole).mean() < 0.5


@pytest.mark.parametrize("ending", ["PNG", "BMP"])
def test_other_formats_are_never_reduced(ending):
    data = io.BytesIO()
    Image.new("RGB", (400, 300)).save(data, ending)
    assert decode(data.getvalue(), at_least=10).size == (400, 300)
    assert reduction(data.getvalue(), 10) == 1
    assert reduction(np.zeros((400, 300, 3), np.uint8), 10) == 1
    assert reduction(b"\xff\xd8 and nonsense", 10) == 1


def _heif(**options):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    image = Image.new("RGB", (64, 32), (200, 40, 40))
    image.paste((20, 20, 220), (0, 0, 32, 32))  # the left half is blue
    file = io.BytesIO()
    image.save(file, "HEIF", quality=100, **options)
    return file.getvalue()


def test_heic_comes_out_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    pixels = np.asarray(decode(_heif()))
    assert pixels.shape == (32, 64, 3)
    assert pixels[16, 8, 2] > 180 > pixels[16, 56, 2]
    turned = np.asarray(decode(_heif(exif=exif.tobytes())))
    assert turned.shape == (64, 32, 3)
    assert turned[8, 16, 2] > 180 > turned[56, 16, 2]


def test_heic_without_its_decoder_names_the_pip_line(monkeypatch):
    monkeypatch.setattr(decode_module, "suffixes", lambda: SUFFIXES)
    decode_module._formats.cache_clear()
    with pytest.raises(BadImage, match=r'pip install "featcache\[heif\]"'):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    decode_module._formats.cache_clear()
