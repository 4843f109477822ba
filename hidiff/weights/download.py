"""What `hidiff download` brings: one table of entries, and how their files come here.

Weights become one model file each in the user's folder (`HIDIFF_HOME`), where `find_model` finds
them by name.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

from tqdm import tqdm

from hidiff.utils.errors import UserError
from hidiff.utils.files import file_sha256, write_text
from hidiff.weights.archives import CHUNK, unpacked
from hidiff.weights.experiment import downloaded_model, user_folder
from hidiff.weights.model_file import build_from, save_model
from hidiff.weights.published import PART, SUFFIXES, infer_sections, load_published, recognise
from hidiff.weights.tensors import Weights

DRIVE = "https://drive.google.com/"

DMPHN = (
    "https://raw.githubusercontent.com/HongguangZhang/DMPHN-cvpr19-master/"
    "9fff261daca8beb0cbaaa0b64df4239b5a05dd17/checkpoints/"
)

RELEASED = Path("experiments/pretrained_models")
"""Where the released option files look for weights."""


@dataclass(frozen=True)
class Download:
    """Something that can be downloaded.

    Args:
        what: it is, for people.
        page: where it is published, to open by hand.
        files: address of each file by name; empty where `page` is a file or folder of Google
            Drive, of which gdown brings all.
        sha256: of the files, where it is known.
        licence: that stands there; None where none is stated.
        released: name of the folder in `RELEASED`; None where the release has none.
        size: of the download, where it is known.
    """

    what: str
    page: str
    files: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    licence: str | None = None
    released: str | None = None
    size: str = ""


def _drive(file: str) -> str:
    return f"{DRIVE}file/d/{file}/view"


def _dmphn(what: str, folder: str, size: str, sums: str) -> Download:
    """An entry of a folder of DMPHN; `sums` has lines of a sum and a file's stem."""
    sha256 = {f"{stem}.pkl": number for number, stem in map(str.split, sums.splitlines())}
    files = {name: f"{DMPHN}{folder}/{name}" for name in sha256}
    page = "https://github.com/HongguangZhang/DMPHN-cvpr19-master"
    return Download(what, page, files=files, sha256=sha256, size=size)


HI_DIFF = "Apache-2.0"
"""Licence of the release's repository."""

WEIGHTS = {
    "gopro": Download(
        "HI-Diff trained on GoPro: 33.33 dB on GoPro, 31.46 dB on HIDE",
        _drive("1cx0vCV5Z5fklnbqonZQad37vt4armEbT"),
        licence=HI_DIFF,
        released="HI_Diff_GoPro",
    ),
    "realblur_r": Download(
        "HI-Diff trained on RealBlur-R (raw images): 41.01 dB",
        _drive("1inQwZ6SJIHYyZoQo702Mv4upjvgg3kFA"),
        licence=HI_DIFF,
        released="HI_Diff_RealBlur_R",
    ),
    "realblur_j": Download(
        "HI-Diff trained on RealBlur-J (camera JPEGs): 33.70 dB",
        _drive("1zdAOurzjAONRmLuPmSi0nppyqT2ORIRg"),
        licence=HI_DIFF,
        released="HI_Diff_RealBlur_J",
    ),
    "stage1": Download(
        "stage 1 of HI-Diff on GoPro, to train stage 2 from (path.stage1: stage1)",
        _drive("1g4aKgt_eMqGcIKqj-NiFLR80tY510KZr"),
        licence=HI_DIFF,
        released="HI_Diff_GoPro_S1",
    ),
    "dmphn": _dmphn(
        "DMPHN with four stacks, trained on GoPro (Table 4)",
        "SDNet4",
        "83 MiB",
        """742090cc26b80cb7e490632bc2a39a8a307d80bf4a1238d70d719d9b23a215f2 decoder_s1_lv1
6b54f3a75747d78446457943f5d315ba265950d86454e0056dba9a83bce97556 decoder_s1_lv2
d016d669a015edf6242e089082d1c55b885c53daba4b85118539dc741f2860e0 decoder_s1_lv3
f41d84bb03d5ddee44c9e31d073d499c10892ebd2d3e50c14a4651556f2b890b decoder_s2_lv1
987694789a7c7de31835c9e60a32eb26d369d0036520a4d718710982d9ef4331 decoder_s2_lv2
2d5f8419144d4fb4c32350e400a1c2daa94025109b45c56f1331a534606bd433 decoder_s2_lv3
d1266e04a2a4e591e8cfa9975c054748eb2b0b9a059ffcc980882b3b803380cc decoder_s3_lv1
27c8d2d1dd45973fffda2b14c5143549b08e11b822535acd9530414e5e52a576 decoder_s3_lv2
6c49f544d97bf4c2a9842e29605ec033b8409405be36956df350b2480aef9466 decoder_s3_lv3
3c80b9565eb568ef799637c2e3e20cb6f4da063ad121da9ebdf77a9cd97aced5 decoder_s4_lv1
a314cefb4f78803305cca94a5771c6ac61b826cdefbb52d9f2a7cb729e5297d8 decoder_s4_lv2
0686bb91604e93325da35ce324936b40e2e23524549f02bf76f9613e87b21117 decoder_s4_lv3
276842e365a2497ad4ad9861d55596490843c96dff5b0d6b629d1d01f20aa2d8 encoder_s1_lv1
cffbbdd5856970bde6c26c8867344074edb535844f45ec71c64ec2c7c65d5841 encoder_s1_lv2
985ec1ec43b6796aec17e9bcccf273a9ab16cece2db08df862edc103f56f0674 encoder_s1_lv3
548ba90ba30e9652ae6ec690ed0c381a185f1f1e0c1f1f72e0dbf635b1910955 encoder_s2_lv1
61aa3debb355872da328b22d3827ad2d81bd4baeb4b5deb90aefa01069913e36 encoder_s2_lv2
8ba77263cfee954fc43d9f056f5bc682ae935d2b01e9cdebf6451f156bb83cbe encoder_s2_lv3
1bcf967ed2d504ed7f7575acafeaca8e817a831d00731a83d0694240760cf052 encoder_s3_lv1
84ac41f13ae51914dfd4e27de5431484b4641340a9bd95fe4cf46afa6f38fa6d encoder_s3_lv2
58ba75c47591ceed26bf15a91a9be4a336e0d43c0e0c5a07fa777fe5a47f19a0 encoder_s3_lv3
c99b84bd6ba701417bafd7e4307525930847eb9a78f9e3eb820514cc6589708b encoder_s4_lv1
4ae847b3d116b60d2e02129df57252a1d31751ec359fc498f24ef481eda49fa4 encoder_s4_lv2
9cef6d621cdb977a622bbc8813ef4b7a038761975800bf3422ec11cd6a6e41ad encoder_s4_lv3""",
    ),
    "dmphn_1_2_4": _dmphn(
        "DMPHN with one stack and three levels, trained on GoPro",
        "DMPHN_1_2_4",
        "21 MiB",
        """923fe68db2a9fb97c45082984e4371768f8d7d27824febcdd95615c3841e9824 decoder_lv1
d324a23f676c624f68ed20cad13d5bca5fa3281922ab20383c4c4713138233d2 decoder_lv2
652c12753b2eb15523cfdb0f1f280d0dd258aceb3464d9da637d2b6b5b1aa5bb decoder_lv3
64b21c627f67382b20d472689a4766c6426d1f3b11763e73cde0cd13270064e1 encoder_lv1
816cdef4165ef81438da0c2226491b1a820ebbc1a3c3d175f56338111da7546d encoder_lv2
898f79b659fd4a4ea1b098d186d42345e6d5fd12ad1ea22eb785c3484f93aab2 encoder_lv3""",
    ),
    "restormer": Download(
        "Restormer trained on GoPro (Table 4)",
        f"{DRIVE}drive/folders/1czMyfRTQDX3j3ErByYeZ1PM4GVLbJeGK",
    ),
}
"""Weights by name."""

DATA = {
    "gopro": Download("GoPro, to train and test", _drive("1KYmgaQj0LWSCL6ygtXcuBZ6DfJgO09RQ")),
    "realblur": Download(
        "RealBlur-R and RealBlur-J, to train and test", _drive("1lSHA9AVzPzoUY3iGwgT299EzEUZUfKkM")
    ),
    "test": Download(
        "the test sets of GoPro, HIDE and RealBlur", _drive("1pUFsJQleqCGTeeHnsSukJU0oSbjjWIJP")
    ),
}
"""Data sets by name."""


def list_models() -> dict[str, str]:
    """What `-m`, `hidiff.load` and `path.weights` take besides own trainings: name → what it is."""
    known = {"bundled": "a small HI-Diff that comes with the package"}
    for name, entry in WEIGHTS.items():
        here = "" if downloaded_model(name).is_file() else f" (hidiff download {name})"
        known[name] = entry.what + here
    return known


def fetch(name: str, entry: Download) -> Path:
    """Bring the files of an entry into a folder, and go on with what an earlier call has begun.

    Returns:
        The folder; what it holds is complete and has the known checksums.

    Raises:
        UserError: no network, no gdown, the host refuses, or a file has changed.
    """
    kind = "data" if entry in DATA.values() else "weights"
    folder = user_folder() / "downloads" / kind / name
    folder.mkdir(parents=True, exist_ok=True)
    if entry.files:
        for file, address in entry.files.items():
            if not (folder / file).is_file():
                fetch_file(address, folder / file, by_hand(name, entry))
    elif not any(path.suffix != ".part" for path in folder.iterdir()):
        _fetch_from_drive(name, entry, folder)
    check_sums(name, entry, folder)
    return folder


def by_hand(name: str, entry: Download) -> str:
    """What to do where a download does not work."""
    kind = "data " if entry in DATA.values() else ""
    return (
        f"open {entry.page} in a browser, download it, and name the file or folder: "
        f"hidiff download {kind}{name} --from FILE_OR_FOLDER"
    )


def fetch_file(address: str, path: Path, advice: str) -> None:
    """Download one file; an interrupted download is gone on with.

    The file is `{path}.part` until it is complete.

    Raises:
        UserError: it cannot be had; `advice` says what to do.
    """
    part = path.with_name(f"{path.name}.part")
    begun = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={begun}-"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            if answer.status != 206:  # The host starts from the beginning.
                begun = 0
            left = int(answer.headers.get("Content-Length") or 0)
            with part.open("ab" if begun else "wb") as file:
                bar = tqdm(
                    total=begun + left, initial=begun, unit="B", unit_scale=True, desc=path.name,
                    disable=None,
                )  # fmt: skip
                with bar:
                    while block := answer.read(CHUNK):
                        file.write(block)
                        bar.update(len(block))
            if left and part.stat().st_size != begun + left:
                raise OSError("the connection ended early; the same command goes on")
    except HTTPError as error:
        if error.code == 416 and begun:  # More is there than the file has: start again.
            part.unlink()
            fetch_file(address, path, advice)
            return
        raise UserError(
            f"{address}: the host answers {error.code} {error.reason}; {advice}"
        ) from None
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{address} cannot be downloaded ({reason}); {advice}") from None
    part.replace(path)


def _fetch_from_drive(name: str, entry: Download, folder: Path) -> None:
    """Bring a file or folder of Google Drive.

    Raises:
        UserError: gdown is missing, or the host refuses.
    """
    advice = by_hand(name, entry)
    try:
        import gdown
    except ImportError:
        raise UserError(
            f"Google Drive needs one more package: pip install 'hidiff[download]'; or {advice}"
        ) from None
    # Kept where the download is interrupted: gdown goes on with what lies there.
    partial = folder.with_name(f".{folder.name}.part")
    partial.mkdir(exist_ok=True)
    try:
        if "/folders/" in entry.page:
            found = gdown.download_folder(entry.page, output=str(partial), resume=True)
        else:
            # Ends in a slash: the file keeps its name, which says what kind of archive it is.
            found = gdown.download(entry.page, output=f"{partial}/", fuzzy=True, resume=True)
    except Exception as error:
        # Of gdown and requests, whose classes differ between versions.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise UserError(f"{entry.page} cannot be downloaded ({reason}); {advice}") from None
    if not found:
        raise UserError(f"{entry.page} cannot be downloaded (no file); {advice}")
    folder.rmdir()
    partial.rename(folder)


def check_sums(name: str, entry: Download, folder: Path) -> None:
    """Compare the files in a folder with their SHA-256: known ones, else those of the first time.

    Raises:
        UserError: a file has changed; a known one is removed, so that the next call brings it anew.
    """
    record = user_folder() / "sha256.json"
    known: dict[str, dict[str, str]] = {}
    if record.is_file():
        try:
            known = json.loads(record.read_text(encoding="utf-8"))
        except ValueError:
            known = {}
    key = f"data {name}" if entry in DATA.values() else name
    expected = {**known.get(key, {}), **entry.sha256}
    found = {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".part"
    }
    for file, number in found.items():
        if expected.get(file, number) != number:
            if file in entry.sha256:
                (folder / file).unlink()
            raise UserError(
                f"checksum mismatch in {folder / file}: it is another file than it was; "
                f"{by_hand(name, entry)}, or remove {record} to take the new one"
            )
    write_text(record, json.dumps({**known, key: {**expected, **found}}, indent=1) + "\n")


def install(name: str, entry: Download, source: Path) -> None:
    """Make one model file of downloaded weights, under the name by which they are found.

    Args:
        source: a folder with the download, or its file; archives in it are unpacked.

    Raises:
        UserError: the networks of one model are not there, or do not fit.
    """
    with unpacked(source, user_folder()) as folder:
        weights = _one_model(folder, name, source)
        sections, _ = infer_sections(weights, str(source))
        save_model(
            downloaded_model(name),
            build_from(sections, weights, str(source)),
            options=sections,
            name=name,
            step=None,
            total_iter=None,
            licence=entry.licence,
            source=entry.page,
        )


def _one_model(folder: Path, name: str, source: Path) -> dict[str, Weights]:
    """The networks of the one model in a folder, by their parameters, wherever its files lie.

    Raises:
        UserError: there is none, or it is not clear which of several.
    """
    models: dict[Path, dict[str, Weights]] = {}
    problems = []
    places = {
        p.parent if p.suffix == PART else p for p in folder.rglob("*") if p.suffix in SUFFIXES
    }
    for place in sorted(places):
        try:
            networks = {
                _role(recognise(weights.state_dict, place.name)): weights
                for weights in load_published(place).values()
            }
        except UserError as error:
            problems.append(str(error))
            continue
        model = models.setdefault(place.parent, {})
        for role in networks.keys() & model.keys():
            problems.append(f"{place.name} and {model[role].path.name} are both {role}")
        model |= networks
    models = {place: model for place, model in models.items() if "net_g" in model}
    if len(models) > 1:
        named = {p: m for p, m in models.items() if p.name.lower().endswith(name)}
        models = named or models
    if len(models) != 1 or problems:
        places_text = ", ".join(str(place.relative_to(folder)) for place in models)
        found = f"several models: {places_text}" if len(models) > 1 else "no model"
        words = "; ".join(problems[:3] if models else [found, *problems[:3]]) or found
        raise UserError(f"{source}: {words}; name the folder with one model with --from")
    return next(iter(models.values()))


def _role(section: Mapping[str, Any]) -> str:
    """What a network is in its model, by its option section."""
    if section["type"] in ("denoising", "simple_denoise"):
        return "net_d"
    if "in_chans" in section:
        return "net_le_dm" if section["in_chans"] == 3 else "net_le"
    return "net_g"
