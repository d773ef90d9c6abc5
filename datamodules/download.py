"""Fetch and unpack archives: resumable, checked, and confined to their folder."""

import hashlib
import logging
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from datamodules.locking import locked
from errors import UserError

log = logging.getLogger(__name__)
CHUNK = 1 << 20
# Datasets of photographs barely compress; an archive that unpacks to a hundred times its size is an attack.
MAX_RATIO = 100


def download(url: str, file: Path, md5: str | None = None) -> Path:
    """Fetch `url` into `file` with a progress bar, going on where an earlier attempt stopped.

    Args:
        url: http(s) or file address.
        file: appears only when complete; until then the bytes are kept in `<file>.part`.
        md5: expected hash, if its publisher gives one; without it the size that the server announced is checked.

    Raises:
        UserError: the server does not answer, or the content is not what was announced.
    """
    with locked(file):
        if file.exists():
            return file
        part = file.with_name(f"{file.name}.part")
        done = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                if done and answer.status != 206:  # the server starts from the beginning
                    done = 0
                length = answer.headers.get("Content-Length")
                total = done + int(length) if length is not None else None
                bar = tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=file.name)
                with open(part, "ab" if done else "wb") as output, bar:
                    while chunk := answer.read(CHUNK):
                        output.write(chunk)
                        bar.update(len(chunk))
        except urllib.error.HTTPError as error:
            if error.code != 416:  # 416: the part is complete already, its hash decides
                raise UserError(
                    f"{url}: the server answers {error.code} {error.reason}; fetch it by hand to {file}"
                ) from error
            total = None
        except (urllib.error.URLError, OSError) as error:
            raise UserError(
                f"{url}: cannot be fetched ({error}); try again to go on, or fetch it by hand to {file}"
            ) from error
        size = part.stat().st_size
        if total is not None and size < total:
            raise UserError(f"{url}: broke off after {size} of {total} bytes; start again to go on")
        if md5 is not None and _md5(part) != md5:
            part.unlink()
            raise UserError(f"{url}: the content has not the published MD5 {md5} and was deleted; try again")
        os.replace(part, file)
    return file


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive into `folder`.

    Nothing is written if a member is a link, a device, or would land outside of the folder, or if the archive unpacks
    to more than a hundred times its size.

    Raises:
        UserError: the archive is refused or damaged.
    """
    log.info("unpacking %s", archive)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                members = file.infolist()
                # The upper half of the attributes is the Unix mode; 0o120000 marks a symbolic link.
                odd = [m.filename for m in members if (m.external_attr >> 16) & 0o170000 == 0o120000]
                _check(archive, [m.filename for m in members], odd, sum(m.file_size for m in members))
                folder.mkdir(parents=True, exist_ok=True)
                for member in tqdm(members, desc=archive.name):
                    file.extract(member, folder)
        else:
            with tarfile.open(archive) as file:
                members = file.getmembers()
                odd = [m.name for m in members if not (m.isfile() or m.isdir())]
                _check(archive, [m.name for m in members], odd, sum(m.size for m in members))
                folder.mkdir(parents=True, exist_ok=True)
                for member in tqdm(members, desc=archive.name):
                    target = folder / member.name
                    if member.isdir():
                        target.mkdir(parents=True, exist_ok=True)
                        continue
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with file.extractfile(member) as source, open(target, "wb") as output:
                        shutil.copyfileobj(source, output)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{archive}: is damaged ({error}); delete it and fetch it again") from error


def _check(archive: Path, names: list[str], odd: list[str], size: int) -> None:
    outside = [
        name
        for name in names
        if "\\" in name or ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute() or ":" in name
    ]
    if outside or odd:
        raise UserError(
            f"{archive}: the member {(outside or odd)[0]!r} is a link or would land outside of the folder; "
            "the archive was not unpacked, do not trust it"
        )
    if size > MAX_RATIO * max(archive.stat().st_size, CHUNK):
        raise UserError(f"{archive}: would unpack to {size} bytes, more than {MAX_RATIO} times its size; not unpacked")


def _md5(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "md5").hexdigest()
