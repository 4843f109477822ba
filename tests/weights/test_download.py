"""Downloads: archives of every shape, interrupted connections, what is no weights."""

import http.server
import io
import re
import shutil
import sys
import tarfile
import threading
import types
import zipfile
from pathlib import Path

import pytest
import torch
from small_data import train_options
from small_models import make_released, random_model, same

import hidiff
from hidiff import UserError
from hidiff.cli import call
from hidiff.options import parse_options
from hidiff.weights import download
from hidiff.weights.archives import unpacked
from hidiff.weights.download import WEIGHTS, Download, fetch, fetch_file, list_models
from hidiff.weights.find import default_model, find_model

SECTIONS = {stage: parse_options(train_options(Path("data"), stage)).sections for stage in (1, 2)}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The user's folder; the current one is another."""
    monkeypatch.setenv("HIDIFF_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


@pytest.fixture
def released(tmp_path):
    """Files of the released layout."""
    make_released(tmp_path / "HI_Diff_GoPro", SECTIONS[2])
    (tmp_path / "HI_Diff_GoPro" / "net_le.pth").unlink()
    return tmp_path / "HI_Diff_GoPro"


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"{folder.name}/{file.name}")
    return path


def tarred(folder, path):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "deep/er/" + folder.name)
    return path


@pytest.mark.parametrize("shape", ["folder", "zip", "tar", "renamed"])
def test_a_download_made_in_a_browser_is_taken(released, tmp_path, shape, capsys):
    """Files by their parameters, wherever they lie and whatever they are called."""
    source = released
    if shape == "renamed":
        for number, file in enumerate(sorted(released.iterdir())):
            file.rename(released / f"{number}.pth")
    if shape == "zip":
        source = zipped(released, tmp_path / "x.zip")
    if shape == "tar":
        source = tarred(released, tmp_path / "x.tar.gz")
    assert call("download", "gopro", "--from", str(source), "--released-layout") == 0
    found = find_model("gopro")
    assert set(found.model.networks()) == {"net_g", "net_le_dm", "net_d"}
    for name, network in random_model(SECTIONS[2], seed=1).networks().items():
        if name != "net_le":
            state = found.model.networks()[name].state_dict()
            assert all(torch.equal(state[key], v) for key, v in network.state_dict().items())
    assert "published weights" in found.description
    assert default_model()[0] == "gopro"
    assert same(hidiff.load("gopro"), found.model)
    layout = "experiments/pretrained_models/HI_Diff_GoPro"
    assert same(find_model(layout).model, found.model)
    assert not [path for path in (tmp_path / "home").iterdir() if path.name.startswith(".")]
    capsys.readouterr()
    assert call("download", "gopro") == 0
    assert "already" in capsys.readouterr().out


def test_stage_1_is_taken_too(tmp_path):
    make_released(tmp_path / "s1", SECTIONS[1])
    assert call("download", "stage1", "--from", str(tmp_path / "s1")) == 0
    assert set(find_model("stage1").model.networks()) == {"net_g", "net_le"}


def test_what_does_not_fit_is_refused(released, tmp_path, home):
    (released / "net_d.pth").rename(tmp_path / "net_d.pth")
    with pytest.raises(UserError, match=r"net_d\.pth"):
        call("download", "gopro", "--from", str(released))
    torch.save({"params": {"weight": torch.zeros(3)}}, released / "net_d.pth")
    with pytest.raises(UserError, match=r"net_d\.pth"):
        call("download", "gopro", "--from", str(released))
    (released / "net_d.pth").write_bytes(b"<!DOCTYPE html><html>quota</html>")
    with pytest.raises(UserError, match="web page"):
        call("download", "gopro", "--from", str(released))
    assert not (home / "models").exists()
    with pytest.raises(UserError, match="absent"):
        call("download", "gopro", "--from", str(tmp_path / "absent.zip"))
    with pytest.raises(UserError, match="gopro"):
        call("download", "gorpo")


def bad_zip(path, name="a/../../evil.pth", mode=0):
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, "/etc/passwd")


def bad_tar(path, kind, name="link"):
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry, io.BytesIO())


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("up.zip", bad_zip),
        ("root.zip", lambda path: bad_zip(path, "/evil.pth")),
        ("drive.zip", lambda path: bad_zip(path, "C:\\evil.pth")),
        ("link.zip", lambda path: bad_zip(path, "link", 0o120777)),
        ("link.tar", lambda path: bad_tar(path, tarfile.SYMTYPE)),
        ("hard.tar", lambda path: bad_tar(path, tarfile.LNKTYPE)),
        ("device.tar", lambda path: bad_tar(path, tarfile.CHRTYPE)),
        ("up.tar", lambda path: bad_tar(path, tarfile.REGTYPE, "../evil.pth")),
        ("damaged.zip", lambda path: path.write_bytes(b"PK\3\4 and no more")),
        ("a.7z", lambda path: path.write_bytes(b"7z")),
        ("a.rar", lambda path: path.write_bytes(b"Rar!")),
    ],
)
def test_hostile_and_unknown_archives_are_refused(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(UserError, match=re.escape(name)), unpacked(tmp_path / name, tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {name, "work"}


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hidiff.weights.archives.LARGEST", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(2000))
    with pytest.raises(UserError, match=r"bomb\.zip"), unpacked(tmp_path / "bomb.zip", tmp_path):
        pass


@pytest.fixture
def server():
    """A host on the loopback that breaks off the first answer after `cut` bytes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        content, cut, asked = bytes(range(256)) * 40, 3000, []

        def do_GET(self):
            begun = int(self.headers.get("Range", "bytes=0-")[6:-1])
            self.asked.append(begun)
            if self.path == "/absent":
                self.send_error(404)
                return
            if begun >= len(self.content):
                self.send_error(416)
                return
            self.send_response(206 if begun else 200)
            self.send_header("Content-Length", str(len(self.content) - begun))
            self.end_headers()
            end = self.cut if len(self.asked) == 1 else len(self.content)
            self.wfile.write(self.content[begun:end])

        def log_message(self, *args):
            pass

    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{host.server_port}", Handler
    host.shutdown()
    host.server_close()


def test_an_interrupted_download_goes_on(server, tmp_path):
    address, handler = server
    path = tmp_path / "file.bin"
    with pytest.raises(UserError, match="--from"):
        fetch_file(f"{address}/file", path, "use --from")
    assert not path.exists() and (tmp_path / "file.bin.part").stat().st_size == handler.cut
    fetch_file(f"{address}/file", path, "")
    assert handler.asked == [0, handler.cut]
    assert path.read_bytes() == handler.content
    (tmp_path / "file.bin.part").write_bytes(bytes(10**5))  # more than there is
    fetch_file(f"{address}/file", path, "")
    assert path.read_bytes() == handler.content
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["file.bin"]
    for wrong in ("/absent", ":1/closed"):
        with pytest.raises(UserError, match="advice"):
            fetch_file(address.rpartition(":")[0] + wrong if ":" in wrong else address + wrong,
                       path.with_name("b"), "advice")  # fmt: skip


def test_checksums_are_compared_with_known_and_earlier_ones(server, monkeypatch, home):
    address, handler = server
    handler.asked.append(0)
    entry = Download("test", "http://page", files={"a.bin": f"{address}/a"})
    folder = fetch("test", entry)
    assert (folder / "a.bin").read_bytes() == handler.content
    (folder / "a.bin").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"checksum.*a\.bin.*--from"):
        fetch("test", entry)
    known = Download("test", "http://page", files=entry.files, sha256={"a.bin": "0" * 64})
    with pytest.raises(UserError, match="checksum"):
        fetch("known", known)
    assert not (home / "downloads" / "weights" / "known" / "a.bin").exists()


@pytest.fixture
def drive(monkeypatch, released, tmp_path):
    """A stand-in for gdown, and what it answers."""
    archive = zipped(released, tmp_path / "HI-Diff-GoPro.zip")
    answer = {"error": None}

    def get(url, output, **options):
        assert options["resume"]
        if answer["error"] is not None:
            Path(output, "begun.part").write_bytes(b"half")
            raise answer["error"]
        return shutil.copy(archive, output)

    gdown = types.ModuleType("gdown")
    gdown.download = gdown.download_folder = get
    monkeypatch.setitem(sys.modules, "gdown", gdown)
    return answer


def test_weights_come_from_google_drive(drive, home):
    drive["error"] = RuntimeError("Too many users have viewed or downloaded this file recently")
    with pytest.raises(UserError, match=r"Too many users.*drive\.google.*--from"):
        call("download", "gopro")
    assert not list((home / "downloads" / "weights" / "gopro").iterdir())
    drive["error"] = None
    assert call("download", "gopro") == 0
    assert find_model("gopro").licence == "Apache-2.0"
    assert find_model("gopro").source == WEIGHTS["gopro"].page


def test_without_gdown_the_address_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UserError, match=r"hidiff\[download\].*drive\.google.*--from"):
        call("download", "gopro")


def test_what_there_is_is_listed(capsys):
    assert call("download") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*WEIGHTS, *(f"data {name}" for name in download.DATA)))
    assert set(list_models()) == {"bundled", *WEIGHTS}
    for entry in WEIGHTS.values():
        assert all(re.fullmatch("[0-9a-f]{64}", number) for number in entry.sha256.values())
        assert set(entry.sha256) == set(entry.files)
    assert len(WEIGHTS["dmphn"].files) == 24 and len(WEIGHTS["dmphn_1_2_4"].files) == 6


@pytest.mark.parametrize("shape", ["layout", "authors"])
def test_a_data_set_is_brought_into_the_layout_and_checked(tmp_path, shape, capsys):
    from small_data import make_pairs

    if shape == "layout":
        make_pairs(tmp_path / "up" / "GoPro" / "test", 2)
    else:
        make_pairs(tmp_path / "pairs", 2)
        scene = tmp_path / "up" / "GOPRO_Large" / "test" / "GOPR0001"
        scene.mkdir(parents=True)
        (tmp_path / "pairs/input").rename(scene / "blur")
        (tmp_path / "pairs/target").rename(scene / "sharp")
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(tmp_path / "up", "x")
    assert call("download", "data", "gopro", "--from", str(tmp_path / "data.tar")) == 0
    assert len(list(Path("datasets/GoPro/test/input").glob("*.png"))) == 2
    assert not any(path.is_symlink() for path in Path("datasets/GoPro").rglob("*.png"))
    assert re.search(r"GoPro/test: .*2 pairs", capsys.readouterr().out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="GoPro/train"):
        call("download", "data", "gopro", "--from", str(tmp_path / "empty"))
