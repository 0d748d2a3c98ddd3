"""The places that the application chose for the files of uploads, as a storage uses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tusd_py.backends.disk.claims import MARK, Claims, parse_place, place_of
from tusd_py.backends.disk.errors import file_errors
from tusd_py.backends.disk.files import FileTree
from tusd_py.core.storage_identity import PRIVATE_FOLDER
from tusd_py.core.upload import Upload


class ChosenPlaces:
    """The chosen places in one upload directory, see `TakesPlaces`. Every method but `location_of` blocks.

    They raise `StorageFull`, `StorageUnavailable`.
    """

    def __init__(self, directory: Path, files: FileTree, check_identity: Callable[[], None]) -> None:
        """Take the places of `files` in `directory`, which `check_identity` proves before a claim is made."""
        self._directory = directory
        self._files = files
        self._check_identity = check_identity
        self._claims = Claims(directory, directory / PRIVATE_FOLDER / "places", files)

    def location_of(self, path: str) -> str:
        """Return the location of a place, see `TakesPlaces.place`."""
        return MARK + parse_place(self._directory, path)

    def claim(self, upload: Upload) -> None:
        """Claim the place of a new upload; raises `PathTaken`."""
        self._check_identity()
        with file_errors():
            self._claims.make(place_of(upload.location), upload.id)

    def give_up(self, upload: Upload) -> None:
        """Give up the place of an upload that has no record, with its file; keep both if it has bytes."""
        with file_errors():
            self._claims.give_up(place_of(upload.location), upload.id)

    def is_occupied(self, path: Path) -> bool:
        """Return whether something is in the way of the file of a new upload."""
        with file_errors():
            return self._files.is_occupied(path)

    def has_own_file(self, upload: Upload) -> bool:
        """Return whether a file is that of an upload: a place that was given up may hold another upload by now."""
        place = place_of(upload.location)
        with file_errors():
            return not place or self._claims.is_of(place, upload.id)

    def release(self, upload: Upload) -> None:
        """Give up the place of an upload that has ended, if it has one."""
        if place := place_of(upload.location):
            with file_errors():
                self._claims.remove(place, upload.id)
