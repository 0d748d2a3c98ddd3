"""The optional parts of tus 1.0.0."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Features:
    """The optional parts of tus 1.0.0 that a server offers."""

    creation_with_upload: bool = True
    creation_defer_length: bool = True
    expiration: bool = True
    checksum: bool = True
    termination: bool = True
    concatenation: bool = True
    concatenation_unfinished: bool = False
    download: bool = True

    def extensions(self, *, trailers: bool) -> list[str]:
        """Return the values of Tus-Extension; `trailers` tells whether the web server passes trailers on."""
        switches = {
            "creation-with-upload": self.creation_with_upload,
            "creation-defer-length": self.creation_defer_length,
            "expiration": self.expiration,
            "checksum": self.checksum,
            "checksum-trailer": self.checksum and trailers,
            "termination": self.termination,
            "concatenation": self.concatenation,
            "concatenation-unfinished": self.concatenation and self.concatenation_unfinished,
        }
        return ["creation", *(name for name, offered in switches.items() if offered)]
