"""Recognition of the type of a file by its first bytes.

A table of the types that people upload, and of types that must not pass for them, such as HTML and programs. A
signature describes the first bytes only: a file may be of two types at once, so downloads have protections of their
own (http/download.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

HEAD_SIZE = 1024  # bytes that decide

_ZIP = ("application/zip", "application/x-zip-compressed", "application/x-zip")
_ZIP_OTHERS = (
    "application/java-archive",
    "application/vnd.android.package-archive",
    "application/vnd.google-earth.kmz",
    "application/vnd.comicbook+zip",
    "application/x-cbz",
)
_OFFICE = tuple(
    f"application/vnd.openxmlformats-officedocument.{name}"
    for name in (
        "wordprocessingml.document",
        "wordprocessingml.template",
        "spreadsheetml.sheet",
        "spreadsheetml.template",
        "presentationml.presentation",
        "presentationml.template",
        "presentationml.slideshow",
    )
) + tuple(
    f"application/vnd.ms-{name}.macroenabled.12"
    for name in ("word.document", "word.template", "excel.sheet", "excel.template", "powerpoint.presentation")
)
_OFFICE_ENTRIES = (b"[Content_Types].xml", b"_rels/", b"docProps/", b"word/", b"xl/", b"ppt/", b"customXml/")
_HEIF = ("image/heic", "image/heif", "image/heic-sequence", "image/heif-sequence")
_AVIF = ("image/avif", "image/avif-sequence")
_MP4_AUDIO = ("audio/mp4", "audio/x-m4a", "audio/m4a", "audio/aac")
_MP4 = ("video/mp4", "audio/mp4", "application/mp4", "video/x-m4v", "audio/x-m4a", "audio/m4a", "video/quicktime")
_QUICKTIME = ("video/quicktime",)
_3GPP = ("video/3gpp", "audio/3gpp", "video/3gpp2", "audio/3gpp2")
_WEBM = ("video/webm", "audio/webm")
_MATROSKA = ("video/x-matroska", "audio/x-matroska", "video/matroska", "audio/matroska")
_OGG_AUDIO = ("audio/ogg", "application/ogg", "audio/opus", "audio/vorbis", "audio/speex")
_OGG_VIDEO = ("video/ogg", "application/ogg", "audio/ogg")
_MP3 = ("audio/mpeg", "audio/mp3", "audio/x-mpeg", "audio/mpeg3")
_AAC = ("audio/aac", "audio/aacp", "audio/x-aac", "audio/x-hx-aac-adts")
_FLAC = ("audio/flac", "audio/x-flac")
_EXECUTABLE = (
    "application/x-msdownload",
    "application/vnd.microsoft.portable-executable",
    "application/x-dosexec",
    "application/x-msdos-program",
)
_BZIP2 = ("application/x-bzip2", "application/x-bzip", "application/bzip2")
_HTML = ("text/html", "application/xhtml+xml")
_SVG = ("image/svg+xml",)
_TAR = ("application/x-tar", "application/tar")
_DICOM = ("application/dicom",)
_TRANSPORT_STREAM = ("video/mp2t", "video/mpeg")

# Beginnings and the types that files with them may have, the most common one first.
_BEGINNINGS: tuple[tuple[bytes, tuple[str, ...]], ...] = (
    (b"\x89PNG\r\n\x1a\n", ("image/png", "image/apng", "image/x-png")),
    (b"\xff\xd8\xff", ("image/jpeg", "image/jpg", "image/pjpeg")),
    (b"GIF87a", ("image/gif",)),
    (b"GIF89a", ("image/gif",)),
    (b"II*\0", ("image/tiff", "image/x-adobe-dng", "image/x-canon-cr2", "image/x-nikon-nef", "image/x-sony-arw")),
    (b"MM\0*", ("image/tiff", "image/x-adobe-dng", "image/x-nikon-nef")),
    (b"8BPS", ("image/vnd.adobe.photoshop", "application/x-photoshop", "image/x-photoshop")),
    (b"\0\0\1\0", ("image/x-icon", "image/vnd.microsoft.icon", "image/ico")),
    (b"\xff\x0a", ("image/jxl",)),
    (b"\0\0\0\x0cJXL \r\n\x87\n", ("image/jxl",)),
    (b"\0\0\0\x0cjP  \r\n\x87\n", ("image/jp2", "image/jpx", "image/jpm")),
    (b"%PDF-", ("application/pdf", "application/x-pdf")),
    (b"%!PS", ("application/postscript", "application/eps", "image/x-eps", "application/illustrator")),
    (b"{\\rtf", ("application/rtf", "text/rtf", "application/x-rtf")),
    *((b"ID3" + version, (*_MP3, *_AAC, *_FLAC)) for version in (b"\2", b"\3", b"\4")),
    (b"fLaC", _FLAC),
    (b"#!AMR", ("audio/amr", "audio/amr-wb")),
    (b"MThd", ("audio/midi", "audio/x-midi", "audio/mid")),
    (b"FLV\1", ("video/x-flv",)),
    (b"\0\0\1\xba", ("video/mpeg", "video/mp2p")),
    (b"\0\0\1\xb3", ("video/mpeg",)),
    (b"0&\xb2u\x8ef\xcf\x11", ("video/x-ms-wmv", "video/x-ms-asf", "audio/x-ms-wma", "application/vnd.ms-asf")),
    (b"\x1f\x8b", ("application/gzip", "application/x-gzip", "application/x-tgz", "application/x-gtar-compressed")),
    (b"\xfd7zXZ\0", ("application/x-xz",)),
    (b"7z\xbc\xaf'\x1c", ("application/x-7z-compressed",)),
    (b"Rar!\x1a\x07", ("application/vnd.rar", "application/x-rar-compressed", "application/x-rar")),
    (b"(\xb5/\xfd", ("application/zstd",)),
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        (
            "application/msword",
            "application/vnd.ms-excel",
            "application/vnd.ms-powerpoint",
            "application/vnd.ms-outlook",
            "application/vnd.visio",
            "application/x-msi",
            "application/x-ole-storage",
        ),
    ),
    (b"\x7fELF", ("application/x-executable", "application/x-elf", "application/x-sharedlib")),
    (b"\xcf\xfa\xed\xfe", ("application/x-mach-binary",)),
    (b"\xce\xfa\xed\xfe", ("application/x-mach-binary",)),
    (b"\xca\xfe\xba\xbe", ("application/java-vm", "application/x-java-applet", "application/x-mach-binary")),
    (b"\0asm", ("application/wasm",)),
    (b"SQLite format 3\0", ("application/vnd.sqlite3", "application/x-sqlite3")),
    (b"wOFF", ("font/woff", "application/font-woff")),
    (b"wOF2", ("font/woff2", "application/font-woff2")),
    (b"OTTO\0", ("font/otf", "application/x-font-otf")),
    (b"\0\1\0\0\0", ("font/ttf", "font/sfnt", "application/x-font-ttf")),
)
_RIFF = {
    b"WEBP": ("image/webp",),
    b"WAVE": ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave", "audio/x-pn-wav"),
    b"AVI ": ("video/x-msvideo", "video/avi", "video/msvideo", "video/vnd.avi"),
}
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # the first one, or the end of an empty file
_AIFF = ("audio/aiff", "audio/x-aiff")
_BMP = ("image/bmp", "image/x-ms-bmp", "image/x-bmp")
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), _HEIF),
    **dict.fromkeys((b"avif", b"avis"), _AVIF),
    **dict.fromkeys((b"M4A ", b"M4B ", b"M4P "), _MP4_AUDIO),
    b"qt  ": _QUICKTIME,
}
_HTML_TAGS = b"html|head|body|script|iframe|style|title|table|div|font|img|form|link|meta|object|embed|h1|br|p|a|b"
_HTML_BEGINNING = re.compile(rb"<(?:%s)[\s>/]|<!doctype html" % _HTML_TAGS, re.IGNORECASE)
_ROOT = re.compile(rb"<(?:[a-z0-9_-]+:)?(svg|html)[\s>/]", re.IGNORECASE)
_BLANK_OR_COMMENT = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s+|<!--.*?-->)*", re.DOTALL)
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_BINARY_KINDS = ("image", "audio", "video", "font")
_TEXT_OF_BINARY_KINDS = frozenset(("audio/mpegurl", "audio/x-mpegurl", "image/x-xpixmap", "image/x-xbitmap"))


def types_by_signature(head: bytes) -> tuple[str, ...]:
    """Return the types that a file with these first bytes may have; empty if no signature fits."""
    for recognise in _RECOGNISERS:
        found = recognise(head)
        if found:
            return tuple(found)
    return ()


def content_types(head: bytes, declared: str) -> tuple[str, ...]:
    """Return the types that a file may have, by its first bytes and, where they do not tell, by its declared type.

    Args:
        head: the first `HEAD_SIZE` bytes of the file, or all of a shorter one.
        declared: the type that the client gave; empty if it gave none.
    """
    found = types_by_signature(head)
    if found:
        return found
    textual = is_text(head)
    if declared and not _contradicts(declared, textual=textual):
        return (declared,)
    if not textual:
        return ("application/octet-stream",)
    if declared:
        return ("text/plain",)
    return ("text/plain", *_structured(head), "text/csv", "text/markdown", "text/tab-separated-values", "text/vtt")


def is_text(head: bytes) -> bool:
    """Return whether the first bytes of a file are text; those of an empty file are."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16
        return True
    return not _CONTROLS.search(head)


def _contradicts(declared: str, *, textual: bool) -> bool:
    """Return whether a file without a signature cannot have the declared type."""
    if declared in _TYPES_WITH_SIGNATURE:
        return True
    if not textual:
        return declared.startswith("text/")
    return declared.partition("/")[0] in _BINARY_KINDS and declared not in _TEXT_OF_BINARY_KINDS


def _structured(head: bytes) -> tuple[str, ...]:
    begin = head[_after_blank(head) :][:5]
    if begin.startswith((b"{", b"[")):
        return ("application/json", "application/x-ndjson", "application/ld+json", "application/geo+json")
    return ("application/xml", "text/xml") if begin == b"<?xml" else ()


def _after_blank(head: bytes) -> int:
    match = _BLANK_OR_COMMENT.match(head)
    return match.end() if match else 0


def _beginning(head: bytes) -> Sequence[str]:
    return next((types for begin, types in _BEGINNINGS if head.startswith(begin)), ())


def _letters(head: bytes) -> Sequence[str]:
    """Return the types of files that begin with a few letters, as a text may too."""
    if head.startswith(b"BZh") and head[4:10] in _BZIP2_BLOCKS:
        return _BZIP2
    return _EXECUTABLE if head.startswith(b"MZ") and not is_text(head) else ()


def _riff(head: bytes) -> Sequence[str]:
    if head.startswith(b"RIFF"):
        return _RIFF.get(head[8:12], ())
    return _AIFF if head.startswith(b"FORM") and head[8:12] in (b"AIFF", b"AIFC") else ()


def _bitmap(head: bytes) -> Sequence[str]:
    return _BMP if head.startswith(b"BM") and head[6:10] == bytes(4) else ()


def _iso_media(head: bytes) -> Sequence[str]:
    if is_text(head):  # of which the first four bytes, the size of a box, would be letters too
        return ()
    if head[4:8] in (b"moov", b"mdat", b"wide", b"pnot", b"skip"):
        return _QUICKTIME
    if head[4:8] != b"ftyp":
        return ()
    brand = head[8:12]
    return _3GPP if brand.startswith(b"3g") else _BRANDS.get(brand, _MP4)


def _ebml(head: bytes) -> Sequence[str]:
    if not head.startswith(b"\x1aE\xdf\xa3"):
        return ()
    return _WEBM if b"webm" in head[:64] else _MATROSKA


def _ogg(head: bytes) -> Sequence[str]:
    if not head.startswith(b"OggS"):
        return ()
    return _OGG_VIDEO if b"theora" in head[:256] or b"fishead" in head[:256] else _OGG_AUDIO


def _mpeg_audio(head: bytes) -> Sequence[str]:
    if len(head) < 2 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return ()
    layer, version = head[1] >> 1 & 3, head[1] >> 3 & 3
    if version == 1:  # reserved; also the byte order mark of UTF-16
        return ()
    if layer == 0:
        return _AAC if head[1] & 0xF6 == 0xF0 else ()
    return _MP3 if layer == 1 or (layer == 2 and len(head) > 2 and head[2] >> 4 != 0xF) else ()


def _transport_stream(head: bytes) -> Sequence[str]:
    return _TRANSPORT_STREAM if head[:1] == head[188:189] == head[376:377] == b"G" else ()


def _zip(head: bytes) -> Sequence[str]:
    if not head.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08")):
        return ()
    name = head[30:]
    if name.startswith(b"mimetype"):  # EPUB and OpenDocument begin with an entry that is their type
        match = re.match(rb"mimetype(application/[a-z0-9.+-]+)", name)
        return (match[1].decode(),) if match else _ZIP
    return _OFFICE if name.startswith(_OFFICE_ENTRIES) else (*_ZIP, *_ZIP_OTHERS)


def _at_offset(head: bytes) -> Sequence[str]:
    if head[257:262] == b"ustar":
        return _TAR
    return _DICOM if head[128:132] == b"DICM" else ()


def _markup(head: bytes) -> Sequence[str]:
    start = _after_blank(head)
    begin = head[start : start + 5].lower()
    if begin == b"<?xml" or begin == b"<!doc":
        root = _ROOT.search(head, start)
        if root is not None:
            return _SVG if root[1].lower() == b"svg" else _HTML
    if head[start : start + 4].lower() == b"<svg":
        return _SVG
    return _HTML if _HTML_BEGINNING.match(head, start) else ()


_RECOGNISERS: tuple[Callable[[bytes], Sequence[str]], ...] = (
    _beginning,
    _letters,
    _riff,
    _iso_media,
    _ebml,
    _ogg,
    _zip,
    _bitmap,
    _at_offset,
    _markup,
    _transport_stream,
    _mpeg_audio,
)
# Types of which every file has a signature of this module.
_TYPES_WITH_SIGNATURE = frozenset(
    [
        *(media_type for _, types in _BEGINNINGS for media_type in types),
        *(media_type for types in _RIFF.values() for media_type in types),
        *(media_type for types in _BRANDS.values() for media_type in types),
        *_AIFF,
        *_BZIP2,
        *_EXECUTABLE,
        *_BMP,
        *_MP4,
        *_3GPP,
        *_WEBM,
        *_MATROSKA,
        *_OGG_AUDIO,
        *_OGG_VIDEO,
        *_ZIP,
        *_ZIP_OTHERS,
        *_OFFICE,
        *_SVG,
    ]
) - {"audio/speex", "application/x-rtf"}
