"""Photographs: what is read of them, what comes back, and what is refused.

The files are made and looked at by other code than that under test.
"""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin, PngImagePlugin
from small_data import picture

from hidiff import UserError
from hidiff.data import decode
from hidiff.data.image import to_float
from hidiff.data.tags import png_chunks, read_tags, write_tags
from hidiff.restore.photo import read_photo, to_pixels, write_photo

RGB = picture(5, 14, 9)
XMP = b"<x:xmpmeta><rdf:Description tiff:Orientation='1' dc:title='Kr\xc3\xa4he'/></x:xmpmeta>"
ICC = b"profile" * 99


def noise(channels, dtype):
    high = np.iinfo(dtype).max + 1
    return np.random.default_rng(channels).integers(0, high, (14, 9, channels)).astype(dtype)


def encoded(kind, pixels, **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.squeeze(pixels))
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name, content):
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def plain_png(pixels, *chunks):
    """Unfiltered; Pillow writes no colours of 16 bits, OpenCV no grey with alpha."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, kind, 0, 0, 0)
    big = pixels.astype(pixels.dtype.newbyteorder(">"))
    rows = b"".join(b"\0" + row.tobytes() for row in big)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def plain_tiff(pixels, **options):
    file = io.BytesIO()
    channels = pixels.shape[2]
    tifffile.imwrite(
        file,
        pixels if channels > 1 else pixels[..., 0],
        photometric="rgb" if channels > 2 else "minisblack",
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        metadata=None,
        **options,
    )
    return file.getvalue()


def copied(data, path):
    """The photograph written by a network that gives back what it sees."""
    photo = read_photo(data, "photo")
    restored = torch.from_numpy(to_float(photo.pixels)).permute(2, 0, 1)
    lost = write_photo(path, photo, to_pixels(restored, photo))
    return photo, path.read_bytes(), lost


def decoded(path, channels):
    """(H, W, C), by OpenCV, TIFF by tifffile."""
    if path.suffix == ".tif":
        return np.atleast_3d(tifffile.imread(path))
    image = np.atleast_3d(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    if channels == 2:
        assert np.array_equal(image[..., 0], image[..., 1])
        return image[..., 2:]
    return image[..., [2, 1, 0, 3][:channels]] if channels > 1 else image


KINDS = [
    *(("png", dtype, channels) for dtype in ("uint8", "uint16") for channels in (1, 2, 3, 4)),
    *(("tif", dtype, channels) for dtype in ("uint8", "uint16") for channels in (1, 3, 4)),
    ("tif", "uint8", 2), ("webp", "uint8", 3), ("webp", "uint8", 4), ("bmp", "uint8", 1),
    ("bmp", "uint8", 3),
]  # fmt: skip


def source(ending, dtype, channels):
    pixels = noise(channels, dtype)
    if ending == "png":
        return pixels, plain_png(pixels)
    if ending == "tif":
        return pixels, plain_tiff(pixels)
    options = {"lossless": True, "exact": True} if ending == "webp" else {}
    return pixels, encoded(ending, pixels, **options)


@pytest.mark.parametrize(("ending", "dtype", "channels"), KINDS)
def test_every_pixel_comes_back(tmp_path, ending, dtype, channels):
    pixels, data = source(ending, dtype, channels)
    path = tmp_path / f"out.{ending}"
    photo, _, lost = copied(data, path)
    assert (photo.pixels.dtype, photo.grey) == (dtype, channels < 3)
    assert lost == []
    found = decoded(path, channels)
    assert found.dtype == dtype
    assert np.array_equal(found, pixels)
    with Image.open(path) as image:
        assert image.size == (9, 14)


def exif_block(orientation=1, thumbnail=False):
    """EXIF with text that is not ASCII, a nested directory, and width and height in it."""
    tags = {
        0x010F: (2, b"Maker\0"),
        0x0112: (3, struct.pack(">H", orientation)),
        0x013B: (2, "Jürgen Ωmega\0".encode()),
        0x8769: {
            0x9286: (7, b"ASCII\0\0\0a comment"),
            0x927C: (7, bytes(range(256))),
            0xA002: (4, struct.pack(">I", 9)),
            0xA003: (4, struct.pack(">I", 14)),
        },
        0x8825: {1: (2, b"N\0"), 2: (5, struct.pack(">6I", 48, 1, 8, 1, 1234, 100))},
    }
    block = bytearray(write_tags(">", tags))
    if thumbnail:
        end = 8 + 2 + 12 * len(tags)
        block[end : end + 4] = struct.pack(">I", len(block))
        block += struct.pack(">H", 1) + struct.pack(">HHII", 0x0201, 4, 1, 8) + bytes(4)
    return bytes(block)


def turned_source(kind, orientation):
    exif = exif_block(orientation)
    if kind == "png 16":
        return plain_png(noise(4, "uint16"), (b"eXIf", exif))
    if kind == "tif 16":
        return plain_tiff(noise(4, "uint16"), extratags=[(0x0112, 3, 1, orientation, True)])
    if kind == "tif 8":
        return plain_tiff(noise(4, "uint8"), extratags=[(0x0112, 3, 1, orientation, True)])
    if kind == "jpg":
        return encoded("JPEG", RGB, exif=b"Exif\0\0" + exif)
    options = {"lossless": True, "exact": True} if kind == "webp" else {}
    return encoded(kind, noise(4, "uint8"), exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "png 16", "tif 8", "tif 16", "webp", "jpg"])
def test_orientation_is_applied_and_reset(tmp_path, kind, orientation):
    data = turned_source(kind, orientation)
    path = tmp_path / f"out.{kind[:4].strip()}"
    photo, written, _ = copied(data, path)
    if kind == "jpg":
        stored = np.asarray(Image.open(io.BytesIO(data)))
    else:
        stored = noise(4, "uint16" if "16" in kind else "uint8")
    flag = Image.Exif()
    flag[0x0112] = orientation
    places = Image.fromarray(np.arange(14 * 9, dtype=np.int32).reshape(14, 9))
    places.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(places))
    expected = stored.reshape(14 * 9, -1)[upright]
    assert np.array_equal(photo.pixels, expected[..., :3])
    with Image.open(io.BytesIO(written)) as image:
        image.load()
        assert image.getexif().get(0x0112, 1) == 1
        assert image.size == upright.shape[::-1]
    if kind != "jpg":
        assert np.array_equal(photo.alpha, expected[..., 3])
        assert np.array_equal(decoded(path, 4), expected)
    if "tif" not in kind:
        inner = read_tags(photo.exif)[1][0x8769]
        sides = [struct.unpack(">I", inner[tag][1])[0] for tag in (0xA002, 0xA003)]
        assert sides == list(upright.shape[::-1])


def metadata_source(ending):
    pixels = picture(2, 14, 9)
    if ending == "jpg":
        comment = "Grüße".encode()
        iptc = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\x08captions"
        extra = b"\xff\xed" + struct.pack(">H", len(iptc) + 2) + iptc
        return encoded(
            *("JPEG", pixels), icc_profile=ICC, exif=b"Exif\0\0" + exif_block(), xmp=XMP,
            comment=comment, dpi=(300, 200), extra=extra,
        )  # fmt: skip
    if ending in ("png", "png16"):
        info = PngImagePlugin.PngInfo()
        info.add_text("Title", "a title")
        info.add_itxt("Author", "Ωmega", "el", "Συγγραφέας")
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        info.add(b"gAMA", struct.pack(">I", 45455))
        options = {"icc_profile": ICC, "exif": exif_block(), "dpi": (300, 200), "pnginfo": info}
        data = encoded("PNG", pixels, **options)
        if ending == "png":
            return data
        beside = [c for c in png_chunks(data) if c[0] not in (b"IHDR", b"IDAT", b"IEND")]
        return plain_png(noise(3, "uint16"), *beside)
    if ending == "webp":
        return encoded("WEBP", pixels, lossless=True, icc_profile=ICC, exif=exif_block(), xmp=XMP)
    text = read_tags(exif_block())[1][0x013B][1]
    return plain_tiff(
        noise(3, "uint16") if ending == "tif16" else pixels,
        resolution=(300, 200), resolutionunit=2, iccprofile=ICC, byteorder=">",
        extratags=[(700, 1, len(XMP), XMP, True), (0x013B, 2, len(text), text, True),
                   (0x010F, 2, 6, b"Maker\0", True), (0x9C9B, 1, 4, b"a\0b\0", True)],
    )  # fmt: skip


def found_exif(data):
    """Tags of the EXIF block, or of the TIFF file, as values."""
    with Image.open(io.BytesIO(data)) as image:
        block = data if image.format == "TIFF" else image.info["exif"].removeprefix(b"Exif\0\0")
    return read_tags(block)[1]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("jpg", "jpg"), ("png", "png"), ("png16", "png"), ("tif", "tif"), ("tif16", "tif"),
        ("webp", "webp"), ("jpg", "png"), ("jpg", "tif"), ("png", "jpg"), ("tif", "jpg"),
        ("tif16", "png"), ("png16", "tif"), ("webp", "jpg"), ("png", "webp"),
    ],
)  # fmt: skip
def test_metadata_is_kept(tmp_path, before, after):
    data = metadata_source(before)
    _, written, lost = copied(data, tmp_path / f"out.{after}")
    ours, theirs = found_exif(written), found_exif(data)
    directories = (0x8769, 0x8825) if "tif" not in before else ()
    for tag in (0x010F, 0x013B, *directories):
        assert ours[tag] == theirs[tag], hex(tag)
    if "tif" in before:
        assert ours[0x9C9B] == (1, b"a\0b\0")
    with Image.open(io.BytesIO(written)) as image:
        image.load()
        assert image.info["icc_profile"] == ICC
        assert image.info["xmp"] == XMP
        if "webp" not in (before, after):
            assert image.info["dpi"] == pytest.approx((300, 200), abs=0.02)
        if before.startswith("png") and after == "png":
            assert image.text["Title"] == "a title"
            author = image.text["Author"]
            assert (author, author.lang, author.tkey) == ("Ωmega", "el", "Συγγραφέας")
            assert image.info["gamma"] == 0.45455
        if before == "jpg" and after == "jpg":
            assert image.info["comment"] == "Grüße".encode()
            assert image.applist == Image.open(io.BytesIO(data)).applist
        if before == "jpg" and after == "png":
            assert image.text["Comment"] == "Grüße"
    expected = {"IPTC"} if before == "jpg" and after != "jpg" else set()
    if (before[:3], after) in (("png", "jpg"), ("png", "tif"), ("png", "webp"), ("jpg", "tif")):
        expected.add("texts")
    if before.endswith("16") and after == "jpg":
        expected.add("8 of the 16 bits")
    assert set(lost) == expected


def test_notes_of_cameras_stay_where_they_were(tmp_path):
    """They hold positions, so nothing may move in the block."""
    block = exif_block(6, thumbnail=True)
    data = encoded("JPEG", RGB, exif=b"Exif\0\0" + block)
    _, written, _ = copied(data, tmp_path / "out.jpg")
    with Image.open(io.BytesIO(written)) as image:
        ours = image.info["exif"].removeprefix(b"Exif\0\0")
        assert image.getexif().get_ifd(0x0201) == {}
    assert len(ours) == len(block)
    assert ours.index(bytes(range(256))) == block.index(bytes(range(256)))
    end = 8 + 2 + 12 * 5
    assert (block[end : end + 4] != bytes(4), ours[end : end + 4]) == (True, bytes(4))


def test_exif_as_imagemagick_writes_it_into_png_files(tmp_path):
    info = PngImagePlugin.PngInfo()
    block = b"Exif\0\0" + exif_block(6)
    info.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n")
    photo, written, _ = copied(encoded("PNG", RGB, pnginfo=info), tmp_path / "out.png")
    assert photo.pixels.shape == (9, 14, 3)
    with Image.open(io.BytesIO(written)) as image:
        assert image.getexif()[0x0112] == 1
        assert image.text == {}


def test_orientation_in_xmp_is_reset_too(tmp_path):
    xmp = XMP.replace(b"'1'", b'"6"')
    photo, written, _ = copied(encoded("JPEG", RGB, xmp=xmp), tmp_path / "out.jpg")
    assert photo.pixels.shape == (9, 14, 3)
    with Image.open(io.BytesIO(written)) as image:
        assert image.info["xmp"] == xmp.replace(b'"6"', b'"1"')


@pytest.mark.parametrize("block", [b"II*\0\x08\0\0\0\xff\xff", b"nonsense", exif_block()[:40]])
def test_a_photograph_outlives_a_damaged_exif_block(tmp_path, block):
    data = encoded("JPEG", RGB, exif=b"Exif\0\0" + block)
    photo, written, _ = copied(data, tmp_path / "out.jpg")
    assert photo.exif is None
    assert len(photo.notices) == 1
    assert Image.open(io.BytesIO(written)).size == (9, 14)


def test_of_a_partly_damaged_exif_block_the_rest_is_kept(tmp_path):
    block = bytearray(exif_block(6))
    entry = 8 + 2 + 2 * 12  # the third one's value is made to lie outside, and GPS too
    block[entry + 8 : entry + 12] = block[entry + 24 + 8 : entry + 24 + 12] = b"\0\1\0\0"
    data = encoded("JPEG", RGB, exif=b"Exif\0\0" + block)
    photo, _, _ = copied(data, tmp_path / "out.jpg")
    assert photo.pixels.shape == (9, 14, 3)
    assert photo.notices == ()
    _, written, _ = copied(data, tmp_path / "out.tif")
    tags = found_exif(written)
    assert tags[0x010F] == (2, b"Maker\0")
    assert 0x8769 in tags
    assert not {0x013B, 0x8825} & tags.keys()


def test_an_impossible_resolution_is_dropped(tmp_path):
    data = plain_tiff(noise(3, "uint8"), resolution=(4e9, 300), resolutionunit=2)
    for ending in ("png", "jpg", "bmp"):
        assert copied(data, tmp_path / f"out.{ending}")[0].dpi is None


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_files_are_written_at_quality_95_in_full_colour_resolution(tmp_path, mode):
    data = encoded("JPEG", Image.fromarray(picture(3, 40, 30)).convert(mode), subsampling=2)
    _, written, _ = copied(data, tmp_path / "out.jpeg")
    with Image.open(io.BytesIO(written)) as image:
        reference = io.BytesIO()
        image.save(reference, "JPEG", quality=95, subsampling=0)
        assert image.mode == mode
        assert image.quantization == Image.open(reference).quantization
        if mode == "RGB":
            assert JpegImagePlugin.get_sampling(image) == 0


def cmyk_profile():
    """A printer on which every ink is grey: the lightness is (1−c)(1−m)(1−y)(1−k)."""
    straight = bytes(range(256))
    corners = b"".join(bytes([255 * (n == 0), 128, 128]) for n in range(16))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * straight + corners + 3 * straight
    desc = b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags, body, table = {b"A2B0": lut, b"desc": desc, b"wtpt": white}, b"", b""
    at = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    head = bytes(4) + b"lcms" + struct.pack(">I", 0x02400000) + b"prtrCMYKLab " + bytes(12)
    head += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    head = head.ljust(128, b"\0") + struct.pack(">I", len(tags))
    data = head + table + body
    return struct.pack(">I", len(data)) + data[4:]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted_with_its_profile(tmp_path, kind):
    inks = Image.new("CMYK", (16, 16), (64, 0, 0, 0))
    ending = {"JPEG": "jpg", "TIFF": "tif"}[kind]
    data = encoded(kind, inks, icc_profile=cmyk_profile(), exif=b"Exif\0\0" + exif_block())
    photo, written, _ = copied(data, tmp_path / f"out.{ending}")
    red, green, blue = photo.pixels[8, 8].astype(int)
    assert max(abs(red - green), abs(green - blue)) <= 1
    assert 170 < red < 195  # L* = 75
    with Image.open(io.BytesIO(written)) as image:
        assert image.mode == "RGB"
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert "sRGB" in ImageCms.getProfileDescription(profile)
    assert photo.notices == ()
    photo = read_photo(encoded(kind, inks), "x")
    assert np.array_equal(photo.pixels[8, 8], inks.convert("RGB").getpixel((8, 8)))
    assert len(photo.notices) == 1


@pytest.mark.parametrize(
    ("mode", "options", "grey", "alpha"),
    [
        ("P", {}, False, False),
        ("P", {"transparency": 3}, False, True),
        ("1", {}, True, False),
        ("L", {"transparency": 100}, True, True),
        ("RGB", {"transparency": (9, 9, 9)}, False, True),
    ],
)
def test_rare_pixels_become_rgb_or_grey(tmp_path, mode, options, grey, alpha):
    data = encoded("PNG", Image.fromarray(RGB).convert(mode), **options)
    photo, written, _ = copied(data, tmp_path / "out.png")
    assert (photo.grey, photo.alpha is not None) == (grey, alpha)
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(written)) as after:
        assert after.mode == ("L" if grey else "RGB") + "A" * alpha if not grey else True
        assert np.array_equal(before.convert("RGBA"), after.convert("RGBA"))


def test_of_several_pictures_in_a_cameras_jpeg_the_photograph_is_taken(tmp_path):
    first, second = (Image.fromarray(picture(seed, 14, 9)) for seed in (1, 2))
    data = encoded("MPO", first, save_all=True, append_images=[second])
    photo, written, _ = copied(data, tmp_path / "out.jpg")
    assert len(photo.notices) == 1
    assert np.abs(photo.pixels.astype(int) - picture(1, 14, 9)).mean() < 30
    assert np.abs(photo.pixels.astype(int) - picture(2, 14, 9)).mean() > 60
    assert Image.open(io.BytesIO(written)).format == "JPEG"


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_photographs_of_phones_are_read(tmp_path, kind):
    if kind not in decode.FORMATS:
        pytest.skip("needs a Pillow with AVIF, or the package pillow-heif")
    data = encoded(kind, picture(2, 40, 30), quality=90, exif=exif_block(6))
    photo, written, _ = copied(data, tmp_path / "out.jpg")
    assert photo.pixels.shape == (30, 40, 3) or kind == "HEIF"
    assert Image.open(io.BytesIO(written)).getexif()[0x0112] == 1


def test_transparency_that_a_format_does_not_hold_is_not_dropped(tmp_path):
    photo = read_photo(plain_png(noise(4, "uint8")), "x")
    for ending in ("jpg", "bmp"):
        with pytest.raises(UserError, match=rf"out\.{ending}: .*--format png"):
            write_photo(tmp_path / f"out.{ending}", photo, photo.pixels)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_a_photograph_too_large_for_a_format_is_refused(tmp_path, ending):
    photo = read_photo(plain_png(np.zeros((70000, 2, 3), np.uint8)), "x")
    with pytest.raises(UserError, match=rf"out\.{ending}: .*2×70000"):
        write_photo(tmp_path / f"out.{ending}", photo, photo.pixels)
    assert not list(tmp_path.iterdir())


def test_blocks_too_long_for_jpeg_are_named(tmp_path):
    photo = read_photo(encoded("PNG", RGB, exif=write_tags("<", {0x010E: (2, bytes(70000))})), "x")
    assert write_photo(tmp_path / "out.jpg", photo, photo.pixels) == ["EXIF"]
    assert Image.open(tmp_path / "out.jpg").size == (9, 14)
