"""Finding blurry and sharp images that belong together: the one way for all programs."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hidiff.data.decode import EXTENSIONS
from hidiff.data.image import listing
from hidiff.data.names import (
    EQUAL_NAMES,
    SIDES,
    check_template,
    core_of,
    guess_template,
    split_template,
    word_templates,
)
from hidiff.data.store import find_images, is_lmdb
from hidiff.utils.errors import UserError, counted_from, missing
from hidiff.utils.files import is_file, read_lines

PARTS = ("train", "test", "val", "valid", "validation")
"""Names of folders (in any case) that are parts of a data set and no scenes."""

SHAPE = re.compile(r"\s+\(\d+(?:,\s*\d+)*\)(?:\s+\d+)?\s*$")
"""What may follow a name in a list of images: `(H,W,3) 1`."""


@dataclass(frozen=True)
class Pair:
    """One blurry image and, unless only restoring, its sharp counterpart.

    Args:
        name: tells it apart from all others; results are files of this name.
        lq, gt: where they lie: paths of files, or `X.lmdb/data.mdb/KEY` (see `hidiff.data.store`).
        scene: the folders above it, below the data's root and without those of the sides and of
            the part; where there are none, the name without its number.
        part: the folder of `PARTS` that it lies in, in small letters; '' where there is none.
    """

    name: str
    lq: str
    gt: str | None
    scene: str = ""
    part: str = ""


@dataclass
class Pairs:
    """What `find_pairs` has found.

    Attributes:
        pairs: in order.
        notices: what a person should know of the folders and is no mistake.
        no_blurry: by name, the sharp images without a blurry one.
        no_sharp: the same the other way round.
    """

    pairs: list[Pair] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    no_blurry: list[str] = field(default_factory=list)
    no_sharp: list[str] = field(default_factory=list)
    template: str | None = None
    """One that would pair the images that have no counterpart, if any does."""

    def require_complete(self, where: str) -> None:
        """Refuse images without a counterpart.

        Raises:
            UserError: there are some.
        """
        sides = (("sharp without blurry", self.no_blurry), ("blurry without sharp", self.no_sharp))
        parts = [f"{len(names)} {side} ({listing(names)})" for side, names in sides if names]
        if not parts:
            return
        hint = (
            "complete the folders, remove these images, or list the pairs in a meta_info_file; "
            "hidiff check lists them all"
        )
        if self.template is not None:
            hint = f"their names differ by a constant part: set filename_tmpl: '{self.template}'"
        by_case = {name.casefold() for name in self.no_blurry}
        if not by_case.isdisjoint(name.casefold() for name in self.no_sharp):
            parts.append("some differ only in upper and lower case, which counts")
        raise UserError(
            f"{where}: images are paired by name, and {len(self.no_blurry) + len(self.no_sharp)} "
            f"have no counterpart: {'; '.join(parts)}; {hint}"
        )


def find_pairs(
    root: str | os.PathLike[str] | None = None,
    *,
    blurry: str | os.PathLike[str] | None = None,
    sharp: str | os.PathLike[str] | None = None,
    lists: str | os.PathLike[str] | None = None,
    template: str | None = None,
    where: str = "--data",
    sides: tuple[str, str] | None = None,
    complete: bool = True,
) -> Pairs:
    """The pairs of blurry and sharp images in a folder, in two, or in a list.

    - `root` alone: in it and its sub-folders, folders of the names `SIDES` beside each other; or
      images of both sides in one folder, told apart by a template.
    - `blurry`, and `sharp` unless there is none: a folder or an LMDB for each side. A folder that
      holds no image itself has a sub-folder for each scene.
    - `lists`: a text file of pairs, see `_listed`.

    Args:
        template: the blurry image's name from the sharp one's, '{}_blur' for example; or both names
            from what they have in common, '{}_blur|{}_sharp'. None: equal names, and within one
            folder the words of `SIDES`.
        where: what asks for the pairs (a YAML path or command-line option), for messages.
        sides: the same for the blurry and the sharp folder.
        complete: refuse images without a counterpart; else they are in the result.

    Raises:
        UserError: something is missing, holds no image, or is not paired.
    """
    if template is not None:
        check_template(template, where)
    if blurry is None:
        assert root is not None
        blurry = sharp = root
    sides = sides or (where, where)
    lq, gt = str(blurry), None if sharp is None else str(sharp)
    if lists is not None:
        found = Pairs(_listed(Path(lists), lq, gt, template or EQUAL_NAMES, where))
    elif gt is None:
        images, notices = find_images(lq, sides[0])
        pairs = [Pair(_flat(n), at, None, *_scene(n)) for n, at in images.items()]
        found = Pairs(pairs, notices)
    elif _same_place(lq, gt):
        found = _in_one_folder(lq, template, where)
    else:
        (lq_images, notices), (gt_images, more) = map(find_images, (lq, gt), sides)
        found = _match(lq_images, gt_images, template or EQUAL_NAMES, [*notices, *more])
    if complete:
        found.require_complete(where)
    twice = [n for n, count in Counter(pair.name for pair in found.pairs).items() if count > 1]
    if twice:
        raise UserError(
            f"{where}: {len(twice)} images are named twice ({listing(twice)}), and their results "
            "would replace each other; '/' and '-' count as the same"
        )
    return found


def _same_place(lq: str, gt: str) -> bool:
    try:
        return Path(lq).resolve() == Path(gt).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that no file has
        return lq == gt


def _flat(name: str) -> str:
    return name.replace("/", "-")


def _scene(name: str, above: Sequence[str] = ()) -> tuple[str, str]:
    """Scene and part of a name below the folder of its side, and the folders above that."""
    *folders, last = [*above, *name.split("/")]
    part = ""
    if folders and folders[0].lower() in PARTS:
        part = folders.pop(0).lower()
    return "/".join(folders) or re.sub(r"[-_. (]*\d+\)?$", "", last), part


def _match(
    blurry: Mapping[str, str],
    sharp: Mapping[str, str],
    template: str,
    notices: Sequence[str] = (),
    above: Sequence[str] = (),
) -> Pairs:
    """Match the images of two sides, given as locations by name.

    Args:
        above: folders above both, which go into names and scenes.
    """
    lq_template, gt_template = split_template(unicodedata.normalize("NFC", template))
    found = Pairs(notices=list(notices))
    used = set()
    for name, location in sharp.items():
        core = core_of(name, gt_template)
        *folders, last = (core or name).split("/")
        wanted = "/".join([*folders, lq_template.format(last)])
        if core is None or wanted not in blurry:
            found.no_blurry.append(name)
            continue
        used.add(wanted)
        full = _flat("/".join([*above, wanted]))
        found.pairs.append(Pair(full, blurry[wanted], location, *_scene(core, above)))
    found.no_sharp = [name for name in blurry if name not in used]
    if found.no_blurry and found.no_sharp:
        found.template = guess_template(blurry, sharp)
    return found


def _in_one_folder(root: str, template: str | None, where: str) -> Pairs:
    """Pairs in folders beside each other below a root, or of two kinds of names in one folder."""
    if not os.path.isdir(root):  # noqa: PTH112 (that of `Path` raises for impossible names)
        raise UserError(f"{where}: the folder {missing(root)}")
    found = Pairs()
    if not is_lmdb(root):
        for place, folders, _ in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for lq, gt in _sides(folders):
                folders[:] = [name for name in folders if name not in (lq, gt)]
                above = Path(place).relative_to(root).parts
                (blurry, said), (sharp, more) = (
                    find_images(str(Path(place, side)), where) for side in (lq, gt)
                )
                part = _match(blurry, sharp, template or EQUAL_NAMES, [*said, *more], above)
                below = "/".join(above)
                found.pairs += part.pairs
                found.notices += part.notices
                found.no_blurry += [f"{below}/{gt}/{n}".lstrip("/") for n in part.no_blurry]
                found.no_sharp += [f"{below}/{lq}/{n}".lstrip("/") for n in part.no_sharp]
                found.template = found.template or part.template
        if found.pairs or found.no_blurry or found.no_sharp:
            return found
    return _by_template(root, template, where)


def _sides(folders: Iterable[str]) -> list[tuple[str, str]]:
    """Of folders beside each other, those of blurry images, each with that of its sharp ones."""
    by_case = {name.lower(): name for name in folders}
    found: dict[str, str] = {}
    for lq, gt in SIDES:
        for name in by_case:
            partner = name.removesuffix(lq) + gt
            taken = by_case[name] in found or by_case.get(partner) in found.values()
            separate = name == lq or name.removesuffix(lq)[-1:] in ("_", "-", " ")
            if name.endswith(lq) and separate and partner in by_case and not taken:
                found[by_case[name]] = by_case[partner]
    return list(found.items())


def _by_template(root: str, template: str | None, where: str) -> Pairs:
    images, notices = find_images(root, where)
    templates = [template] if template else word_templates(images)
    for candidate in templates:
        lq_template, gt_template = split_template(candidate)
        blurry = {n: at for n, at in images.items() if core_of(n, lq_template) is not None}
        sharp = {n: at for n, at in images.items() if core_of(n, gt_template) is not None}
        # A name that fits both is of the side whose template says more.
        if gt_template == EQUAL_NAMES:
            sharp = {n: at for n, at in sharp.items() if n not in blurry}
        else:
            blurry = {n: at for n, at in blurry.items() if n not in sharp}
        if not blurry or not sharp:
            continue
        left = len(images) - len(blurry) - len(sharp)
        said = f"{where}: blurry and sharp images of {root} are told apart by '{candidate}'"
        said += f"; {left} other images are not used" if left else ""
        return _match(blurry, sharp, candidate, [*notices, said])
    known = ", ".join(" and ".join(sides) for sides in SIDES)
    raise UserError(
        f"{where}: {root} has no pairs: neither two folders of blurry and sharp images beside each "
        f"other ({known}), nor names such as 07_blur and 07_sharp. Name the folder of each side, "
        "the names with filename_tmpl: '{}_blur|{}_sharp', or list the pairs in a meta_info_file. "
        "Of a video's frames, hidiff prepare video --input FOLDER --output DIR --frames 7 makes "
        "pairs"
    )


def _listed(path: Path, lq_root: str, gt_root: str | None, template: str, where: str) -> list[Pair]:
    """Pairs named by a text file, one a line, relative to the two data roots.

    A line is `name.png` (optionally followed by a shape such as `(720,1280,3)`), the same name on
    both sides up to the template; or `sharp/path.png blurry/path.png` as in RealBlur's lists.
    With a tab between the two paths there may be spaces in them.
    """
    where = f"{where}.meta_info_file"
    if not is_file(path):
        raise UserError(f"{where}: there is no file {path}{counted_from(path)}")
    pairs, absent = [], []
    for number, line in read_lines(path, where):
        gt_name, lq_name = _fields(line, lq_root, gt_root or lq_root, template)
        if gt_name is None:
            raise UserError(
                f"{where}: {path}, line {number}: expected 'name' or 'sharp blurry', got "
                f"'{line}'; put a tab between names with spaces"
            )
        lq = _existing(Path(lq_root, lq_name))
        gt = None if gt_root is None else _existing(Path(gt_root, gt_name))
        absent += [str(place) for place in (lq, gt) if place is not None and not is_file(place)]
        # Only what tells images apart goes into the name: RealBlur repeats file names per scene.
        name = Path(lq_name).with_suffix("").as_posix()
        pairs.append(Pair(_flat(name), str(lq), None if gt is None else str(gt), *_scene(name)))
    if absent:
        raise UserError(
            f"{where}: {path} names {len(absent)} files that do not exist ({listing(absent, 3)})"
            f"{counted_from(absent[0])}; check dataroot_gt and dataroot_lq"
        )
    if not pairs:
        raise UserError(f"{where}: {path} names no image")
    same = [p.name for p in pairs if p.gt is not None and Path(p.lq).samefile(p.gt)]
    if same:
        raise UserError(
            f"{where}: of {len(same)} pairs of {path} both images are one file "
            f"({listing(same, 3)}); check dataroot_gt, dataroot_lq and the list"
        )
    return pairs


def _fields(line: str, lq_root: str, gt_root: str, template: str) -> tuple[str | None, str]:
    """Sharp and blurry path of a line; (None, '') where it is not understood."""
    if "\t" in line:
        fields = [part.strip() for part in line.split("\t") if part.strip()]
        fields = [SHAPE.sub("", f" {part}").strip() for part in fields]
        if len(fields) == 2 and not fields[1].startswith("("):
            return fields[0], fields[1]
        line = fields[0]
    text = SHAPE.sub("", line).strip()
    words = text.split(" ")
    for cut in range(1, len(words)):
        gt, lq = " ".join(words[:cut]).strip(), " ".join(words[cut:]).strip()
        if len(words) == 2 and Path(gt).suffix.lower() in EXTENSIONS:
            return gt, lq
        if is_file(_existing(Path(gt_root, gt))) and is_file(_existing(Path(lq_root, lq))):
            return gt, lq
    if len(words) > 1 and not is_file(_existing(Path(gt_root, text))):
        return None, ""
    lq_template, gt_template = split_template(template)
    path = Path(text)
    core = core_of(path.stem, gt_template)
    return text, str(path.with_name(lq_template.format(core or path.stem) + path.suffix))


def _existing(path: Path) -> Path:
    """The path in the one of Unicode's two forms in which there is such a file."""
    forms = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return path if is_file(path) else next((form for form in forms if is_file(form)), path)
