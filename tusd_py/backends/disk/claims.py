"""Places in the upload directory that the application chose for the bytes of uploads.

A place belongs to an upload from its creation to its removal, whatever happens to the file there: no other upload gets
the place meanwhile, nor one that it leads through, nor one below it. A claim is a symbolic link in a folder of its own,
named by a digest of the place, to the id of the upload; one call makes the claim with its content. For each folder on
the way to the place there is such a link too, in a folder named by its digest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from pathlib import Path

from tusd_py.backends.disk.completion_records import PRIVATE
from tusd_py.backends.disk.files import FileTree
from tusd_py.backends.disk.sync_calls import UNSUPPORTED, sync_file
from tusd_py.core.errors import PathTaken
from tusd_py.core.upload import UPLOAD_ID

OWN_FOLDER = re.compile(r"\.|[0-9]{4,5}/[0-9]{2}/[0-9]{2}")  # folders of files that are named by ids
OWN_NAME = re.compile(rf"{UPLOAD_ID.pattern}(\.[0-9a-f]+)?")  # of the files in them
MARK = "="  # first character of the location of an upload with a chosen place
LOCATION = re.compile(rf"{MARK}(?:[^./\0][^/\0]*/)*[^./\0][^/\0]*")
MAX_NAME, MAX_PLACE = 200, 1024  # bytes
ATTEMPTS = 10  # to enter a folder that others leave


def parse_place(directory: Path, text: str) -> str:
    """Return a place as its path from the directory.

    Args:
        directory: the upload directory.
        text: a path from there, or an absolute one below it.

    Raises:
        ValueError: uploads cannot be there; the text says why, for the operator.
        PathTaken: the name is one of those that the server gives to files.
    """
    place = text.removeprefix(f"{directory.absolute()}/").removeprefix(f"{directory}/")
    if not LOCATION.fullmatch(MARK + place) or not place.isprintable():
        raise ValueError("the path in the answer is not below the upload directory, or a part of it begins with a dot")
    names = [name.encode("utf-8", "replace") for name in place.split("/")]
    if max(map(len, names)) > MAX_NAME or sum(map(len, names)) + len(names) > MAX_PLACE:
        raise ValueError(f"the path in the answer has more than {MAX_PLACE} bytes, or {MAX_NAME} in one part")
    folder, _, name = place.rpartition("/")
    if OWN_FOLDER.fullmatch(folder or ".") and OWN_NAME.fullmatch(name):
        raise PathTaken
    return place


def place_of(location: str) -> str:
    """Return the chosen place of an upload, from the directory; empty without one."""
    return location[1:] if LOCATION.fullmatch(location) else ""


def own_files_above(place: str) -> list[tuple[str, str]]:
    """Return the ids and locations of uploads without a chosen place whose files would be in the way of a place."""
    found = [(folder or ".", name) for folder, _, name in (above.rpartition("/") for above in _above(place))]
    return [(name, folder) for folder, name in found if OWN_FOLDER.fullmatch(folder) and UPLOAD_ID.fullmatch(name)]


def _above(place: str) -> list[str]:
    """Return the folders that lead to a place, the one in the directory first."""
    names = place.split("/")
    return ["/".join(names[:count]) for count in range(1, len(names))]


class Claims:
    """The claims of one upload directory. Every method blocks, and raises `OSError`."""

    def __init__(self, directory: Path, folder: Path, files: FileTree) -> None:
        """Keep claims in `folder`, for places of `files` in `directory`."""
        self._directory = directory
        self._files = files
        self._claims = FileTree(folder, PRIVATE)

    def make(self, place: str, upload_id: str) -> None:
        """Claim a place for an upload, and create its file; raises `PathTaken`.

        Of two claims at the same time for a place and for one below it, each is made before it looks for the other: one
        of them is refused, or both are.
        """
        path = self._directory / place
        try:
            self._claims.link_text(upload_id, self._name_of(place))
        except FileExistsError:
            raise PathTaken(holder=self._claims.read_link(self._name_of(place))) from None
        try:
            self._enter_folders(place, upload_id)
            # The files may have been moved away, and their folders removed: the directory does not tell.
            if self._leads_through_claim(place) or self._has_claims_below(place):
                raise PathTaken
            self._sync()
            os.close(self._files.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except PathTaken:
            self.remove(place, upload_id)
            raise
        except OSError as error:
            self.remove(place, upload_id)
            if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP):
                raise PathTaken from None
            raise

    def _leads_through_claim(self, place: str) -> bool:
        return any(self._claims.read_link(self._name_of(above)) for above in _above(place))

    def _has_claims_below(self, place: str) -> bool:
        try:
            with self._claims.opened_folder(self._folder_of(place)) as descriptor:
                return bool(os.listdir(descriptor))
        except FileNotFoundError:
            return False

    def _enter_folders(self, place: str, upload_id: str) -> None:
        """Note in each folder on the way to a place that it is one."""
        for above in _above(place):
            for attempt in range(ATTEMPTS):
                try:
                    self._claims.link_text(upload_id, self._folder_of(above) / _digest(place))
                except FileExistsError:  # a crash has left it
                    pass
                except FileNotFoundError:  # another upload has just left the folder
                    if attempt == ATTEMPTS - 1:
                        raise
                    continue
                break

    def _leave_folders(self, place: str) -> None:
        for above in _above(place):
            folder = self._folder_of(above)
            self._claims.unlink(folder / _digest(place))
            with contextlib.suppress(OSError):  # others are in it, or nothing is left of it
                os.rmdir(folder)

    def _sync(self) -> None:
        """Sync the folder of the claims, if its file system can."""
        try:
            with self._claims.opened_folder(self._claims.top) as descriptor:
                sync_file(descriptor)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise

    def is_of(self, place: str, upload_id: str) -> bool:
        """Return whether a place belongs to an upload."""
        return self._claims.read_link(self._name_of(place)) == upload_id

    def remove(self, place: str, upload_id: str) -> None:
        """Give a place up, if it belongs to the upload."""
        if self.is_of(place, upload_id):
            self._leave_folders(place)
            self._claims.unlink(self._name_of(place))

    def give_up(self, place: str, upload_id: str) -> None:
        """Give up the place of an upload that has no record, with its file; keep both if it has bytes."""
        path = self._directory / place
        if self.is_of(place, upload_id) and not self._files.is_occupied(path):
            self._files.unlink(path)
            self.remove(place, upload_id)

    def _name_of(self, place: str) -> str:
        return f"{self._claims.top}/{_digest(place)}"

    def _folder_of(self, place: str) -> Path:
        """Return the folder with the claims of places below a place."""
        return self._claims.top / f"{_digest(place)}.below"


def _digest(place: str) -> str:
    return hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()
