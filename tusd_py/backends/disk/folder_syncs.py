"""Syncs of the folders that hold the names of files, where the file system can sync folders."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from tusd_py.backends.disk.files import FileTree
from tusd_py.backends.disk.sync_calls import UNSUPPORTED, sync_file

NO_FOLDER_SYNC = "the file system cannot sync directories: after a power cut the names of the newest files may be lost"


class FolderSyncs:
    """The syncs of the folders of one storage, which end with the first that is impossible. Every method blocks."""

    def __init__(self, files: FileTree) -> None:
        self._files = files
        self._syncs_folders = True
        self.limitations: list[str] = []

    def opened(self, path: Path, stack: contextlib.ExitStack) -> list[int]:
        """Open the folders that hold the name of a file, if they can be synced; raises `OSError`."""
        folders = self._files.folders(path) if self._syncs_folders else ()
        try:
            return [stack.enter_context(self._files.opened_folder(folder)) for folder in folders]
        except OSError as error:
            self._note_unsupported(error)
            return []

    def sync(self, folder: Path) -> None:
        """Sync one folder; raises `OSError`."""
        with contextlib.ExitStack() as stack:
            try:
                descriptor = stack.enter_context(self._files.opened_folder(folder))
            except OSError as error:
                self._note_unsupported(error)
            else:
                self.sync_open([descriptor])

    def sync_open(self, descriptors: Sequence[int]) -> None:
        """Sync open folders; raises `OSError`."""
        for descriptor in descriptors:
            try:
                sync_file(descriptor)
            except OSError as error:
                self._note_unsupported(error)

    def _note_unsupported(self, error: OSError) -> None:
        """Sync no folders from now on; raises `error` if it does not tell that this is impossible here."""
        if error.errno not in UNSUPPORTED:
            raise error
        self._syncs_folders = False
        self.limitations.append(NO_FOLDER_SYNC)
