"""The raw floor: a server that only reads headers, receives into a buffer and writes it out, at the machine's pace.

The floor speaks just enough HTTP and tus for the load generator, keeps offsets in memory and checks next to nothing.
One thread, one epoll loop, one shared buffer. Not for use as an upload server.
"""

import argparse
import base64
import hashlib
import itertools
import os
import select
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

BUFFER_BYTES = 4 << 20
HEAD_LIMIT = 64 << 10
# Without a low-water mark the kernel wakes the reader for every segment of a bulk body.
WAKE_BYTES = 1 << 20


class Digest(Protocol):
    def update(self, data: memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


@dataclass(slots=True)
class Upload:
    path: Path
    length: int
    descriptor: int = -1
    offset: int = 0


@dataclass(slots=True)
class Session:
    connection: socket.socket
    head: bytearray = field(default_factory=bytearray)
    upload: Upload | None = None
    location: str = ""
    remaining: int = 0
    position: int = 0
    digest: Digest | None = None
    expected_digest: bytes = b""
    wake_bytes: int = 1


class Floor:
    def __init__(self, directory: Path, sync: bool) -> None:
        self.directory = directory
        self.sync = sync
        self.uploads: dict[str, Upload] = {}
        self.numbers = itertools.count(1)
        self.view = memoryview(bytearray(BUFFER_BYTES))

    def receive(self, session: Session) -> bool:
        """Handle the bytes that the socket has; return False if the peer has closed the connection."""
        if session.remaining:
            count = session.connection.recv_into(self.view[: min(BUFFER_BYTES, session.remaining)])
            if not count:
                return False
            self.store(session, self.view[:count])
            return True
        data = session.connection.recv(HEAD_LIMIT)
        session.head += data
        end = session.head.find(b"\r\n\r\n")
        if end >= 0:
            head, body = bytes(session.head[:end]), bytes(session.head[end + 4 :])
            session.head.clear()
            self.begin(session, head.decode("latin-1"), memoryview(body))
        return bool(data) and len(session.head) < HEAD_LIMIT

    def begin(self, session: Session, head: str, body: memoryview) -> None:
        request, *lines = head.split("\r\n")
        method, path, _ = request.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if method == "POST":
            self.create(session, path, int(headers["upload-length"]))
        elif method == "PATCH" and path in self.uploads:
            session.upload, session.location = self.uploads[path], ""
        else:
            self.answer_without_body(session, method, path)
            return
        assert session.upload is not None
        session.position, session.remaining = session.upload.offset, length
        announced = headers.get("upload-checksum")
        session.digest = hashlib.sha256() if announced else None
        session.expected_digest = base64.b64decode(announced.split(" ")[1]) if announced else b""
        self.store(session, body)

    def create(self, session: Session, path: str, length: int) -> None:
        name = f"{next(self.numbers):032x}"
        location = f"{path.rstrip('/')}/{name}"
        file = self.directory / name
        upload = Upload(file, length, os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        self.uploads[location] = upload
        session.upload, session.location = upload, location

    def store(self, session: Session, data: memoryview) -> None:
        upload = session.upload
        assert upload is not None
        while data:
            if session.digest:
                session.digest.update(data)
            written = os.pwrite(upload.descriptor, data, session.position)
            session.position += written
            session.remaining -= written
            data = data[written:]
        self.wake_at(session, min(WAKE_BYTES, max(session.remaining, 1)))
        if not session.remaining:
            self.finish(session, upload)

    @staticmethod
    def wake_at(session: Session, count: int) -> None:
        if count != session.wake_bytes:
            session.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            session.wake_bytes = count

    def finish(self, session: Session, upload: Upload) -> None:
        if session.digest and session.digest.digest() != session.expected_digest:
            answer(session, "460 Checksum Mismatch")
            return
        upload.offset = session.position
        if upload.offset == upload.length and upload.descriptor >= 0:
            if self.sync:
                os.fsync(upload.descriptor)
            os.close(upload.descriptor)
            upload.descriptor = -1
        if session.location:
            answer(session, "201 Created", f"Location: {session.location}", f"Upload-Offset: {upload.offset}")
        else:
            answer(session, "204 No Content", f"Upload-Offset: {upload.offset}")

    def answer_without_body(self, session: Session, method: str, path: str) -> None:
        upload = self.uploads.get(path)
        if method == "OPTIONS":
            extensions = "Tus-Extension: creation,creation-with-upload,termination,checksum"
            answer(session, "204 No Content", extensions, "Tus-Checksum-Algorithm: sha256")
        elif upload is None:
            answer(session, "404 Not Found")
        elif method == "HEAD":
            answer(session, "200 OK", f"Upload-Offset: {upload.offset}", f"Upload-Length: {upload.length}")
        elif method == "GET":
            send_file(session.connection, upload)
        elif method == "DELETE":
            if upload.descriptor >= 0:
                os.close(upload.descriptor)
            upload.path.unlink()
            del self.uploads[path]
            answer(session, "204 No Content")


def answer(session: Session, status: str, *headers: str) -> None:
    length = () if status.startswith("204") else ("Content-Length: 0",)
    lines = (f"HTTP/1.1 {status}", "Tus-Resumable: 1.0.0", *headers, *length, "", "")
    session.connection.sendall("\r\n".join(lines).encode())


def send_file(connection: socket.socket, upload: Upload) -> None:
    connection.setblocking(True)
    connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {upload.length}\r\n\r\n".encode())
    descriptor = os.open(upload.path, os.O_RDONLY)
    offset = 0
    while offset < upload.length:
        offset += os.sendfile(connection.fileno(), descriptor, offset, upload.length - offset)
    os.close(descriptor)
    connection.setblocking(False)


def serve(port: int, floor: Floor) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    poll = select.epoll()
    poll.register(listener.fileno(), select.EPOLLIN)
    sessions: dict[int, Session] = {}
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == listener.fileno():
                connection, _ = listener.accept()
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sessions[connection.fileno()] = Session(connection)
                poll.register(connection.fileno(), select.EPOLLIN)
            elif not serve_session(floor, sessions[descriptor]):
                poll.unregister(descriptor)
                sessions.pop(descriptor).connection.close()


def serve_session(floor: Floor, session: Session) -> bool:
    try:
        return floor.receive(session)
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--fsync", action="store_true", help="fsync a file once it is complete")
    options = parser.parse_args()
    serve(options.port, Floor(options.directory, options.fsync))


if __name__ == "__main__":
    main()
