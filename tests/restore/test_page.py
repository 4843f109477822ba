"""The page on which pictures are compared: what is written, and what a browser makes of it."""

import base64
import html.parser
import io
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from small_data import picture, write_rgb

from hidiff.restore.page import PageEntry, write_page
from hidiff.utils.errors import UserError


class Items(html.parser.HTMLParser):
    """The tags and the texts of a page, as a browser reads them."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page.read_text())
        self.buttons = [
            dict(a) for tag, a in self.tags if tag == "button" and "data-after" in dict(a)
        ]

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def pair(folder: Path, name: str = "a.png", **others) -> PageEntry:
    """A comparison of two plain pictures."""
    for side, value in (("in", 50), ("out", 200)):
        write_rgb(folder / side / name, np.full((20, 30, 3), value, np.uint8))
    return PageEntry(Path(name).stem, folder / "in" / name, folder / "out" / name, **others)


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_names_are_text_and_never_markup(tmp_path):
    nasty = '</script><script>alert("x")</script>\' & {{items}} <b>'
    entry = pair(tmp_path)
    write_page(
        tmp_path / "p.html",
        [PageEntry(nasty, entry.before, entry.after, scores={nasty: nasty})],
        title=nasty,
        embed=False,
    )
    page = Items(tmp_path / "p.html")
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert len(page.buttons) == 1
    # Title, heading, the entry's name, and a score's name and value.
    assert [text.strip() for text in page.texts].count(nasty) == 5


def test_pictures_beside_the_page_are_named_from_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "50% #1? ünï:é\"'&.png"
    entry = pair(Path("pictures"), name)
    write_page("pages/deep/p.html", [entry], title="t", embed=False)
    (button,) = Items(tmp_path / "pages/deep/p.html").buttons
    assert re.fullmatch(r"[\w./%~-]+", button["data-before"])
    for side, path in (("before", entry.before), ("after", entry.after)):
        assert (tmp_path / "pages/deep" / unquote(button[f"data-{side}"])).samefile(path)
    assert (button["data-width"], button["data-height"]) == ("30", "20")
    assert "data-sharp" not in button
    assert sorted(path.name for path in (tmp_path / "pages/deep").iterdir()) == ["p.html"]


def test_embedded_pictures_are_the_files(tmp_path):
    entry = pair(tmp_path)
    write_page(
        tmp_path / "p.html",
        [PageEntry("a", entry.before, entry.after, entry.after)],
        title="t",
        embed=True,
    )
    (button,) = Items(tmp_path / "p.html").buttons
    for side, path in (("before", entry.before), ("sharp", entry.after)):
        start, data = button[f"data-{side}"].split(",")
        assert start == "data:image/png;base64"
        assert base64.b64decode(data) == path.read_bytes()


def test_a_phones_jpeg_with_a_second_picture_is_shown_as_it_is(tmp_path):
    entry = pair(tmp_path)
    image = Image.fromarray(picture(0, 20, 30))
    image.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[image])
    write_one(tmp_path, "x.jpg", entry.after)
    assert Items(tmp_path / "p.html").buttons[0]["data-before"] == "x.jpg"


@pytest.mark.parametrize("embed", [True, False])
@pytest.mark.parametrize("kind", ["tif", "png16", "tif16", "cmyk"])
def test_what_browsers_do_not_show_is_converted(tmp_path, kind, embed):
    entry = pair(tmp_path)
    image = picture(0, 20, 30)
    path = tmp_path / f"x.{'jpg' if kind == 'cmyk' else kind[:3]}"
    if kind == "cmyk":
        Image.fromarray(image).convert("CMYK").save(path, quality=100, subsampling=0)
    else:
        write_rgb(path, image * np.uint16(257) if kind.endswith("16") else image)
    write_page(tmp_path / "p.html", [PageEntry("a", path, entry.after)], title="t", embed=embed)
    (button,) = Items(tmp_path / "p.html").buttons
    if embed:
        content = base64.b64decode(button["data-before"].removeprefix("data:image/png;base64,"))
    else:
        assert button["data-before"].startswith("p_files/")
        content = (tmp_path / button["data-before"]).read_bytes()
    shown = pixels(content)
    assert shown.dtype == np.uint8
    assert np.abs(shown.astype(int) - image).max() <= (8 if kind == "cmyk" else 0)


def write_one(folder, name, after):
    """A page with the picture of that name before."""
    entries = [PageEntry("a", folder / name, after)]
    write_page(folder / "p.html", entries, title="t", embed=False)


def test_a_converted_picture_keeps_its_colour_space(tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    entry = pair(tmp_path)
    Image.fromarray(picture(0, 20, 30)).save(tmp_path / "x.tif", icc_profile=profile)
    write_one(tmp_path, "x.tif", entry.after)
    (converted,) = (tmp_path / "p_files").iterdir()
    assert Image.open(converted).info["icc_profile"] == profile


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_pictures_are_as_they_are_looked_at(tmp_path, kind):
    """Which browsers do by themselves in a JPEG, but not all of them in a PNG."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture(0, 30, 20)
    Image.fromarray(image).save(tmp_path / f"x.{kind}", exif=exif)
    entry = pair(tmp_path)
    write_one(tmp_path, f"x.{kind}", entry.after)
    (button,) = Items(tmp_path / "p.html").buttons
    assert (button["data-width"], button["data-height"]) == ("30", "20")
    if kind == "png":
        shown = pixels((tmp_path / button["data-before"]).read_bytes())
        assert np.array_equal(shown, np.rot90(image, -1))
    else:
        assert button["data-before"] == "x.jpg"


def test_transparency_and_grey_are_kept(tmp_path):
    entry = pair(tmp_path)
    image = picture(0, 20, 30)[..., :2]
    Image.fromarray(image).save(tmp_path / "x.tif")  # grey and alpha
    write_one(tmp_path, "x.tif", entry.after)
    (converted,) = (tmp_path / "p_files").iterdir()
    assert np.array_equal(pixels(converted.read_bytes()), image)


def test_what_cannot_be_compared_is_left_out_and_named(tmp_path):
    good = pair(tmp_path)
    write_rgb(tmp_path / "other.png", np.zeros((20, 31, 3), np.uint8))
    (tmp_path / "bad.png").write_bytes(good.after.read_bytes()[:60])
    entries = [
        good,
        PageEntry("size", good.before, tmp_path / "other.png"),
        PageEntry("bad", good.before, tmp_path / "bad.png"),
        PageEntry("gone", tmp_path / "gone.tif", good.after),
    ]
    left_out = write_page(tmp_path / "p.html", entries, title="t", embed=False)
    assert list(left_out) == ["size", "bad", "gone"]
    assert "30×20" in left_out["size"]
    assert "bad.png" in left_out["bad"]
    assert "gone.tif" in left_out["gone"]
    assert len(Items(tmp_path / "p.html").buttons) == 1
    with pytest.raises(UserError, match=r"gone\.tif"):
        write_page(tmp_path / "q.html", entries[3:], title="t", embed=False)
    assert not (tmp_path / "q.html").exists()


def test_only_an_earlier_page_is_replaced(tmp_path):
    page, entry = tmp_path / "p.html", pair(tmp_path)
    for title in ("one", "two"):
        write_page(page, [entry], title=title, embed=False)
        assert f"<title>{title}</title>" in page.read_text()
    page.write_text("<title>mine</title>")
    with pytest.raises(UserError, match=r"p\.html"):
        write_page(page, [entry], title="three", embed=False)
    assert page.read_text() == "<title>mine</title>"
    with pytest.raises(UserError, match=r"\.html"):
        write_page(tmp_path / "in/a.png", [entry], title="t", embed=False)
