"""The paths of files of uploads below the directory of a storage, by the locations in their records."""

from __future__ import annotations

import time
from pathlib import Path

from tusd_py.backends.disk.claims import OWN_FOLDER, place_of
from tusd_py.core.errors import StoredElsewhere, UploadNotFound
from tusd_py.core.upload import Upload

TOP = "."  # location of a file in the directory itself


class Locations:
    """The locations of uploads in one directory, in folders by day of creation or in the directory itself. No I/O."""

    def __init__(self, directory: Path, *, date_folders: bool) -> None:
        """Locate new uploads below `directory`, with `date_folders` in the folder of their day."""
        self._directory = directory
        self._prefix = str(directory / "_")[:-1]  # of the paths of files in the directory
        self._date_folders = date_folders

    def locate(self, upload: Upload) -> str:
        """Return the location of a new upload."""
        return _day(upload) if self._date_folders else TOP

    def candidates(self, upload: Upload) -> tuple[str, str]:
        """Return the locations that an upload without one may have, the likelier one first."""
        return (_day(upload), TOP) if self._date_folders else (TOP, _day(upload))

    def file(self, upload: Upload) -> str:
        """Return the path of the file of an upload, which is below the directory for any id.

        Raises:
            StoredElsewhere: the location is none of this storage.
            UploadNotFound: no upload has such an id.
        """
        location = upload.location or self.locate(upload)
        if location != TOP and not OWN_FOLDER.fullmatch(location):
            place = place_of(location)
            if not place:
                raise StoredElsewhere
            return str(self._directory / place)
        if not upload.id or "/" in upload.id or upload.id.startswith("."):
            raise UploadNotFound
        return f"{self._prefix}{upload.id}" if location == TOP else f"{self._prefix}{location}/{upload.id}"


def _day(upload: Upload) -> str:
    return time.strftime("%Y/%m/%d", time.gmtime(upload.created_at))
