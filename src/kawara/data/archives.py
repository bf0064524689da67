"""Read image files out of folders and zip archives, from many threads at once."""

from __future__ import annotations

import mmap
import os
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from kawara.errors import DataError, DecodeError

_LOCAL_HEADER = b"PK\x03\x04"
_LOCAL_HEADER_BYTES = 30
# A member said to be larger than this is an attack or a mistake, not an image.
_MAX_MEMBER_BYTES = 1 << 30


@dataclass(frozen=True)
class FolderSource:
    """Give the bytes of files below `root`."""

    root: str

    def read(self, member: str) -> bytes:
        """Return the file's bytes. Raises OSError."""
        with open(os.path.join(self.root, member), "rb") as file:
            return file.read()


class ZipSource:
    """Give the bytes of the members of one zip archive.

    The archive is memory-mapped and members are cut out of it without a lock, which `zipfile` needs for each read: 50,000 small
    images would wait for each other. Every member's checksum is verified.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with zipfile.ZipFile(self.path) as archive:
                self.members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise DataError(f"{path} is not a readable zip archive.", got=error, remedy="download or make it again") from None
        self._lock = threading.Lock()
        self._content: mmap.mmap | None = None

    def read(self, member: str) -> bytes:
        """Return the member's bytes. Raises DecodeError where it is damaged, encrypted or packed in an unusual way."""
        info = self.members[member]
        name = f"{self.path}/{member}"
        if info.flag_bits & 0x1:
            raise DecodeError(name, "encrypted in the zip archive")
        if info.file_size > _MAX_MEMBER_BYTES:
            raise DecodeError(name, f"{info.file_size / 1e9:.1f} GB large in the zip archive, not an image")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(member)
        content = self._mapped()
        start = info.header_offset
        header = content[start : start + _LOCAL_HEADER_BYTES]
        if header[:4] != _LOCAL_HEADER or len(header) < _LOCAL_HEADER_BYTES:
            raise DecodeError(name, "damaged in the zip archive (no header)")
        start += _LOCAL_HEADER_BYTES + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        packed = content[start : start + info.compress_size]
        try:
            data = packed if info.compress_type == zipfile.ZIP_STORED else zlib.decompressobj(-15).decompress(packed, info.file_size + 1)
        except zlib.error as error:
            raise DecodeError(name, f"damaged in the zip archive ({error})") from None
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise DecodeError(name, "damaged in the zip archive (wrong checksum)")
        return data

    def _mapped(self) -> mmap.mmap:
        with self._lock:
            if self._content is None:
                with open(self.path, "rb") as file:
                    self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return self._content


def file_stamp(status: os.stat_result) -> str:
    """Return what tells that a file is still the same one: size and times.

    The change time cannot be set by hand, so a file replaced by one with an old date is noticed too.
    """
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
