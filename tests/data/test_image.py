"""Decoding: which files are refused, which are taken, and with which pixels."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from small_data import picture

from hidiff import UserError
from hidiff.data import decode as decoding
from hidiff.data.decode import decode, read_header
from hidiff.data.image import write_image

RGB = picture(5, 60, 84)


def encoded(kind: str, image: Image.Image | None = None, **options) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(RGB)).save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes, name: str) -> np.ndarray:
    return decode(data, name, thorough=True).pixels


def opencv(data: bytes) -> np.ndarray:
    """What the release decodes, as RGB."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "4:2:0": {"subsampling": 2},
    "4:4:4": {"subsampling": 0},
    "restart": {"restart_marker_blocks": 4},
    "RGB": {"keep_rgb": True},
}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_damage_that_libjpeg_only_warns_of_is_refused(kind):
    whole = encoded("JPEG", **JPEGS[kind])
    assert np.array_equal(pixels(whole, "x"), opencv(whole))
    # The last scan's data: zeros are no valid codes there, and less than all of it is not enough.
    begin = whole.rindex(b"\xff\xda") + 20
    damaged = whole[:begin] + bytes(len(whole) - begin - 2) + whole[-2:]
    assert opencv(damaged) is not None
    for data in (damaged, whole[: begin + 5], whole[: begin + 5] + b"\xff\xd9"):
        with pytest.raises(UserError, match=r"^here: "):
            pixels(data, "here")


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_lacks_only_its_end_marker_is_whole(kind):
    whole = encoded("JPEG", **JPEGS[kind])
    for cut in (1, 2):
        assert np.array_equal(pixels(whole[:-cut], "x"), opencv(whole))
    with pytest.raises(UserError):
        pixels(whole[:-12], "x")


def test_grey_jpegs():
    whole = encoded("JPEG", Image.fromarray(RGB).convert("L"))
    assert np.array_equal(pixels(whole, "x"), opencv(whole))


def test_a_compressed_tiff_with_a_flipped_bit_is_refused():
    whole = encoded("TIFF", compression="tiff_adobe_deflate")
    assert np.array_equal(pixels(whole, "x"), RGB)
    for place in range(300, 3000, 300):
        data = bytearray(whole)
        data[place] ^= 4
        with pytest.raises(UserError, match=r"^here: "):
            pixels(bytes(data), "here")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "BMP", "JPEG"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.3, 0.8, 0.98])
def test_truncated_files_are_refused(kind, part):
    whole = encoded(kind)
    with pytest.raises(UserError, match=r"^here: "):
        pixels(whole[: int(part * len(whole))], "here")


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "P"), ("PNG", "1"), ("PNG", "LA"), ("BMP", "P"), ("TIFF", "CMYK")]
)
def test_rare_kinds_of_pixels_become_rgb(kind, mode):
    data = encoded(kind, Image.fromarray(RGB).convert(mode))
    image = pixels(data, "x")
    assert np.array_equal(image, opencv(data))
    expected = np.asarray(Image.fromarray(RGB).convert(mode).convert("RGB")).astype(int)
    assert np.abs(image.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image" * 99,
        encoded("GIF"),
        encoded("TIFF", Image.fromarray(RGB[..., 0].astype(np.float32))),
        encoded("TIFF", Image.fromarray(RGB[..., 0].astype(np.int32))),
    ],
    ids=["empty", "text", "GIF", "floating point", "32 bits"],
)
def test_what_is_no_picture_of_8_or_16_bits_is_refused(data):
    with pytest.raises(UserError, match=r"^here: "):
        pixels(data, "here")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_turns_pixels_and_header_alike(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(kind, exif=exif)
    header = read_header(data, "x")
    assert pixels(data, "x").shape[:2] == (header.height, header.width) == (84, 60)


def blank_png(side: int) -> bytes:
    """A grey PNG of one value: a few bytes for many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side * (side + 1)))
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_images_of_too_many_pixels_are_refused_before_decoding(monkeypatch):
    small = blank_png(30)
    # The header says 30000², as the file that asks for gigabytes does.
    large = small[:16] + struct.pack(">II", 30000, 30000) + small[24:29]
    large += struct.pack(">I", zlib.crc32(large[12:29])) + small[33:]
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(UserError, match=r"^here: 30000×30000 .*HIDIFF_MAX_MEGAPIXELS"):
        pixels(large, "here")
    monkeypatch.setenv("HIDIFF_MAX_MEGAPIXELS", "0.0008")
    with pytest.raises(UserError, match=r"^here: 30×30 .*HIDIFF_MAX_MEGAPIXELS"):
        pixels(small, "here")
    monkeypatch.undo()
    monkeypatch.setenv("HIDIFF_MAX_MEGAPIXELS", "0.0009")
    assert pixels(small, "here").shape == (30, 30, 3)


@pytest.mark.parametrize("text", ["many", "0", "-1", "nan"])
def test_the_limit_must_be_a_number(monkeypatch, text):
    monkeypatch.setenv("HIDIFF_MAX_MEGAPIXELS", text)
    with pytest.raises(UserError, match=r"^HIDIFF_MAX_MEGAPIXELS: "):
        pixels(blank_png(3), "here")


@pytest.mark.parametrize("ending", [".jpg", ".webp"])
def test_a_picture_too_large_for_its_format_is_named(tmp_path, ending):
    path = tmp_path / f"sheet{ending}"
    with pytest.raises(UserError, match=rf"sheet\{ending}: .*2×70000 "):
        write_image(path, np.zeros((70000, 2, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_further_bands_and_pages_are_refused():
    bands = np.dstack([RGB, RGB[..., :1]])
    for pixels_of in (bands, bands.astype(np.uint16) * 257):
        file = io.BytesIO()
        tifffile.imwrite(file, pixels_of, photometric="rgb", extrasamples=["unspecified"])
        with pytest.raises(UserError, match=r"^here: 4 bands"):
            pixels(file.getvalue(), "here")
    for kind in ("PNG", "WEBP", "TIFF"):
        data = encoded(kind, save_all=True, append_images=[Image.fromarray(RGB[::-1].copy())])
        with pytest.raises(UserError, match=r"^here: 2 pictures"):
            pixels(data, "here")


def test_tags_that_lie_over_each_other_are_refused_before_they_are_read(monkeypatch):
    count, size = 2000, 100_000
    entries = b"".join(struct.pack("<HHII", 40000 + n, 1, size, 8) for n in range(count))
    block = b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4 + size)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("was opened"))
    with pytest.raises(UserError, match=r"^here: "):
        pixels(block, "here")


def test_a_heic_file_names_the_package_that_it_needs(monkeypatch):
    monkeypatch.setattr(decoding, "FORMATS", [f for f in decoding.FORMATS if f != "HEIF"])
    with pytest.raises(UserError, match="pip install pillow-heif"):
        pixels(b"\0\0\0\x18ftypheic" + bytes(40), "a.HEIC")


@pytest.mark.skipif("AVIF" not in decoding.FORMATS, reason="Pillow has no AVIF")
def test_bits_that_are_lost_are_said(monkeypatch):
    """No encoder here writes 10 bits, so the box of an 8-bit file is read as if it said so."""
    data = encoded("AVIF")
    assert decode(data, "x").notices == ()
    assert decoding.heif_depth(data) == 8
    at = data.index(b"pixi") + 9
    assert decoding.heif_depth(data[:at] + b"\x0a" + data[at + 1 :]) == 10
    monkeypatch.setattr(decoding, "heif_depth", lambda _: 10)
    assert "10 bits" in " ".join(decode(data, "x").notices)
