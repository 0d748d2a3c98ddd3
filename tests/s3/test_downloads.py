"""Downloads of objects in S3, through the server or by redirect."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.support.harness import ServerProcess
from tests.support.s3_server import s3_server
from tests.support.s3_uploads import PART, Place, digest_of, fetch, serving
from tests.support.wire.messages import MEBI, metadata, payload
from tests.support.wire.requests import create, request


def test_ranges_of_a_download(server: ServerProcess, place: Place) -> None:
    data = payload(2 * PART + 11)
    path = create(server.port, len(data), {"Upload-Metadata": metadata(filename="a.bin")}, data)
    whole = request(server.port, "GET", path)
    assert (whole.status, digest_of(whole.body)) == (200, digest_of(data))
    assert whole.headers["content-disposition"] == 'attachment; filename="a.bin"'
    end = len(data)
    for text, start, stop in (
        ("bytes=0-0", 0, 1),
        (f"bytes={PART - 1}-{PART}", PART - 1, PART + 1),
        (f"bytes={MEBI}-", MEBI, end),
        ("bytes=-5", end - 5, end),
        (f"bytes=100-{10 * end}", 100, end),
    ):
        answer = request(server.port, "GET", path, {"Range": text})
        assert (answer.status, digest_of(answer.body)) == (206, digest_of(data[start:stop]))
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{end}"
    assert request(server.port, "GET", path, {"Range": f"bytes={end}-"}).status == 416
    assert request(server.port, "GET", path, {"If-None-Match": whole.headers["etag"]}).status == 304


def test_an_unfinished_upload_cannot_be_downloaded(server: ServerProcess) -> None:
    path = create(server.port, 2 * PART, body=payload(PART + 1))
    assert request(server.port, "GET", path).status == 404


def test_an_object_that_somebody_removed_cannot_be_downloaded(server: ServerProcess, place: Place) -> None:
    path = create(server.port, 1000, body=payload(1000))
    place.remove([place.key_of(path)])
    assert request(server.port, "GET", path).status == 404


def test_downloads_by_redirect(tmp_path: Path) -> None:
    data = payload(PART + 1000)
    place = Place(s3_server())
    with serving(tmp_path, place, s3_download="redirect") as server:
        fields = metadata(filename="Prüfung, 100%.html", filetype="text/html")
        path = create(server.port, len(data), {"Upload-Metadata": fields}, data)
        answer = request(server.port, "GET", path)
        assert answer.status == 302
        assert "no-store" in answer.headers["cache-control"]
        location = answer.headers["location"]
        assert location.startswith(place.server.endpoint)
        assert 0 < int(parse_qs(urlsplit(location).query)["X-Amz-Expires"][0]) <= 3600
        stored = fetch(location)
        assert (stored.status, digest_of(stored.body)) == (200, digest_of(data))
        disposition = stored.headers["content-disposition"]
        assert disposition.startswith("attachment; ")
        assert "filename*=UTF-8''Pr%C3%BCfung%2C%20100%25.html" in disposition
        ranged = fetch(location, {"Range": f"bytes={PART}-{PART + 99}"})
        assert (ranged.status, ranged.body) == (206, data[PART : PART + 100])
        assert request(server.port, "GET", path, {"Range": f"bytes={len(data)}-"}).status == 416
        unfinished = create(server.port, len(data), body=data[:1000])
        assert request(server.port, "GET", unfinished).status == 404
        picture = create(server.port, 4, {"Upload-Metadata": metadata(filename="a.png", filetype="image/png")}, b"data")
        shown = fetch(request(server.port, "GET", picture).headers["location"])
        assert shown.headers["content-type"] == "image/png"
        assert shown.headers["content-disposition"] == 'inline; filename="a.png"'
        empty = create(server.port, 0)
        assert fetch(request(server.port, "GET", empty).headers["location"]).body == b""
