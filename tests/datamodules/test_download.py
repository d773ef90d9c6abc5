import hashlib
import io
import tarfile
import threading
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from datamodules.coco import fetch_coco
from datamodules.download import download, unpack
from errors import UserError

CONTENT = bytes(range(256)) * 4000


class Handler(BaseHTTPRequestHandler):
    """Serves `files`, honours ranges, and breaks off the first answer after `break_after` bytes."""

    def do_GET(self):
        server = self.server
        body = server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        begin = 0
        if "Range" in self.headers and server.ranges:
            begin = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if begin >= len(body):
                self.send_error(416)
                return
        server.requests.append(begin)
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        stop = server.break_after if len(server.requests) == 1 else None
        self.wfile.write(body[begin:][:stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    instance = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    instance.files, instance.requests, instance.ranges, instance.break_after = {"/x.bin": CONTENT}, [], True, None
    thread = threading.Thread(target=partial(instance.serve_forever, poll_interval=0.01))
    thread.start()
    instance.url = f"http://127.0.0.1:{instance.server_port}"
    yield instance
    instance.shutdown()
    thread.join()
    instance.server_close()


def test_download_checks_the_hash(server, tmp_path):
    good = hashlib.md5(CONTENT).hexdigest()
    file = download(f"{server.url}/x.bin", tmp_path / "x.bin", good)
    assert file.read_bytes() == CONTENT
    download(f"{server.url}/x.bin", file, good)
    assert server.requests == [0]  # what is there is not fetched again
    with pytest.raises(UserError, match=r"has not the published MD5"):
        download(f"{server.url}/x.bin", tmp_path / "y.bin", "0" * 32)
    assert not list(tmp_path.glob("y.bin*"))


@pytest.mark.parametrize("ranges", [True, False])
def test_download_goes_on_where_it_broke_off(server, tmp_path, ranges):
    server.break_after, server.ranges = 100_000, ranges
    with pytest.raises(UserError, match=r"broke off after 100000 of 1024000 bytes"):
        download(f"{server.url}/x.bin", tmp_path / "x.bin")
    assert not (tmp_path / "x.bin").exists()
    assert download(f"{server.url}/x.bin", tmp_path / "x.bin").read_bytes() == CONTENT
    assert server.requests == [0, 100_000 if ranges else 0]


def test_download_of_a_complete_part(server, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(CONTENT)
    assert download(f"{server.url}/x.bin", tmp_path / "x.bin").read_bytes() == CONTENT


def test_download_errors(server, tmp_path):
    with pytest.raises(UserError, match=r"nothing: the server answers 404"):
        download(f"{server.url}/nothing", tmp_path / "n")
    with pytest.raises(UserError, match=r"cannot be fetched"):
        download("http://127.0.0.1:1/x", tmp_path / "n")


def archive(path, members):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)
    else:
        with tarfile.open(path, "w") as file:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_unpack(tmp_path, ending):
    unpack(archive(tmp_path / f"a.{ending}", {"d/x.txt": b"1", "y.txt": b"22"}), tmp_path / "out")
    assert (tmp_path / "out" / "d" / "x.txt").read_bytes() == b"1"
    assert (tmp_path / "out" / "y.txt").read_bytes() == b"22"


@pytest.mark.parametrize("ending", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "d/../../evil.txt", "..\\evil.txt", "c:evil.txt"])
def test_unpack_refuses_to_leave_the_folder(tmp_path, ending, name):
    bad = archive(tmp_path / f"a.{ending}", {"fine.txt": b"1", name: b"2"})
    with pytest.raises(UserError, match=r"would land outside"):
        unpack(bad, tmp_path / "out")
    assert not list(tmp_path.rglob("*.txt"))


def test_unpack_refuses_links_and_bombs(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(member)
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    archive(tmp_path / "a.zip", {link: "/etc"})
    for name in ("a.tar", "a.zip"):
        with pytest.raises(UserError, match=r"'link' is a link"):
            unpack(tmp_path / name, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(120 << 20))
    with pytest.raises(UserError, match=r"more than 100 times"):
        unpack(tmp_path / "bomb.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unpack_damaged(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"is damaged"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


def test_fetch_coco_unpacks_each_archive_once(server, tmp_path):
    path = archive(tmp_path / "val2017.zip", {"val2017/x.jpg": b"1"})
    server.files["/val2017.zip"] = path.read_bytes()
    for _ in range(2):
        fetch_coco(tmp_path / "coco", {"val2017": f"{server.url}/val2017.zip"})
    assert (tmp_path / "coco" / "val2017" / "x.jpg").exists()
    assert not (tmp_path / "coco" / "val2017.zip").exists() and len(server.requests) == 1
