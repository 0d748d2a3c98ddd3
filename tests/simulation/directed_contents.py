"""Directed scenarios of what the bytes of uploads have to fulfil: types by the first bytes, digests, scans."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator

import tusd_py.composition
from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import append, create, gone, record_of, refused, send, until
from tests.simulation.oracle import Expected
from tests.support.services import Body
from tusd_py.contracts.scanner import ScanImpossible
from tusd_py.core.buffers import Buffer
from tusd_py.core.conditions import Conditions
from tusd_py.core.errors import QuotaExceeded, TypeNotAllowed, UploadNotFound
from tusd_py.core.file_types import HEAD_SIZE
from tusd_py.core.upload import Status, UploadKind
from tusd_py.uploads.sweeping import Sweeper
from tusd_py.uploads.validation import AppendRequest, NewUpload

PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
PROGRAM = b"MZ\x90\0\x03\0\0\0"
PICTURES = {"allowed_types": ("image/*",)}
METADATA = "Upload-Metadata"
CLAMD = "tcp://clamd.example:3310"


def of(beginning: bytes, size: int, world: DirectedWorld) -> bytes:
    """Return so many bytes of a kind of file."""
    return (beginning + world.client.rng.randbytes(size))[:size]


def declared(media_type: str) -> dict[str, str]:
    """Return the header with the type that a client declares."""
    return {METADATA: f"filetype {base64.b64encode(media_type.encode()).decode()}"}


def checksum(content: bytes) -> dict[str, str]:
    """Return the header with a checksum of these bytes."""
    return {"Upload-Checksum": f"sha256 {base64.b64encode(hashlib.sha256(content).digest()).decode()}"}


def digest(content: bytes, name: str = "sha-256") -> dict[str, str]:
    """Return the header with the digest of a whole upload."""
    value = hashlib.new(name.replace("-", ""), content).digest()
    return {"Repr-Digest": f"{name}=:{base64.b64encode(value).decode()}:"}


def condition(content: bytes) -> Conditions:
    """Return the condition that an upload has these bytes."""
    return Conditions((("sha-256", hashlib.sha256(content).hexdigest()),))


# Types.


@scenario(settings=PICTURES)
async def a_type_is_judged_by_the_first_bytes(world: DirectedWorld) -> None:
    client = world.client
    await client.ask("POST", "/files", {"Upload-Length": "9", **declared("text/html")}, status=415)
    for size in (HEAD_SIZE * 2, 300):  # refused once enough bytes have arrived, or at the end
        program = await client.create(size)
        await send(world, program, of(PROGRAM, size, world), status=415)
        await gone(world, program)
        picture = await client.create(size, headers=declared("image/png"))
        await send(world, picture, of(PICTURE, size, world))
        await client.download(picture)


@scenario(settings=PICTURES)
async def a_type_is_judged_across_requests_and_lives(world: DirectedWorld) -> None:
    content = of(PROGRAM, HEAD_SIZE * 2, world)
    program, whole = await world.client.create(len(content)), of(PICTURE, 900, world)
    picture = await world.client.create(len(whole))
    await send(world, program, content[:100])
    await send(world, picture, whole[:300])
    await send(world, picture, whole[300:500])
    await world.restart(world.host)  # the next life has not seen the first bytes
    await world.client.look(program)
    await send(world, program, content[100:], status=415)
    await gone(world, program)
    await send(world, picture, whole[500:])
    await world.client.download(picture)


@scenario(settings=PICTURES)
async def a_type_is_judged_after_the_checksum_of_a_request(world: DirectedWorld) -> None:
    content = of(PROGRAM, HEAD_SIZE * 3, world)
    program = await world.client.create(len(content))
    begin = content[: HEAD_SIZE * 2]
    damaged = of(PICTURE, HEAD_SIZE * 2, world)
    await send(world, program, damaged, headers=checksum(begin), status=460)  # a wrong checksum is told first
    world.oracle.uploads[-1].attempts.clear()
    await send(world, program, begin, headers=checksum(begin), status=415)
    await gone(world, program)
    picture = await world.client.create(HEAD_SIZE)
    whole = of(PICTURE, HEAD_SIZE, world)
    await send(world, picture, whole, headers=checksum(whole), is_whole=True)
    await world.client.download(picture)


@scenario(settings=PICTURES)
async def a_final_upload_is_judged_by_the_first_bytes_of_its_parts(world: DirectedWorld) -> None:
    client = world.client
    for beginning, status in ((PICTURE, 201), (PROGRAM, 415)):
        content = of(beginning, 700, world)
        parts = [await client.create(size, "partial") for size in (300, 400)]
        await send(world, parts[0], content[:300])
        await send(world, parts[1], content[300:])
        await client.ask("GET", parts[0].path, status=404)  # nobody has looked at it as a whole
        names = " ".join(part.path for part in parts)
        if status == 201:
            await client.download(await client.join(parts))
        else:
            await client.ask("POST", "/files", {"Upload-Concat": f"final;{names}"}, status=status)
            await client.ask("POST", "/files", {"Upload-Concat": f"final;{names}", **declared("text/html")}, status=415)


@scenario()
async def an_upload_has_the_types_that_were_granted_to_it(world: DirectedWorld) -> None:
    types = Conditions(types=("image/*",))
    content = of(PROGRAM, 200, world)
    program = await create(world, 200, conditions=types)
    await send(world, program, content, status=415)
    await gone(world, program)
    await refused(
        world,
        TypeNotAllowed,
        lambda service: service.create(NewUpload(9, conditions=types, metadata="filetype dGV4dC9odG1s")),
    )
    part = await create(world, 200, conditions=types, concatenation=UploadKind.PARTIAL)
    await send(world, part, of(PROGRAM, 200, world))  # a piece of a file begins with any bytes
    await refused(world, UploadNotFound, lambda service: service.get_completed(part.id))
    part.abandoned = True  # nobody can download it


# Digests.


@scenario()
async def an_upload_has_the_digest_that_its_creation_names(world: DirectedWorld) -> None:
    client = world.client
    for name in ("sha-256", "sha-512"):
        content = client.rng.randbytes(3000)
        upload = await client.create(3000, headers=digest(content, name))
        await send(world, upload, content[:1000])
        await client.look(upload)
        await send(world, upload, content[1000:])
        await client.download(upload)
        wrong = await client.create(3000, headers=digest(content, name))
        await send(world, wrong, content[:1000])
        await send(world, wrong, content[:2000], status=460)
        await gone(world, wrong)
    for content, status in ((b"", 201), (b"x", 460)):  # an upload without bytes has a digest too
        answer = await client.ask("POST", "/files", {"Upload-Length": "0", **digest(content)}, status=status)
        world.check(("location" in answer.headers) == (status == 201), f"{answer.status} with {answer.headers}")


@scenario()
async def a_digest_is_computed_of_bytes_that_an_earlier_life_has_taken(world: DirectedWorld) -> None:
    content = world.client.rng.randbytes(6000)
    right = await world.client.create(6000, headers=digest(content))
    wrong = await world.client.create(6000, headers=digest(content))
    for upload in (right, wrong):
        await send(world, upload, content[:4000])
    await world.restart(world.host)
    await send(world, right, content[4000:])
    await world.client.download(right)
    await send(world, wrong, content[:2000], status=460)
    await gone(world, wrong)


@scenario()
async def digests_of_few_uploads_are_remembered_and_others_read_again(world: DirectedWorld) -> None:
    content = world.client.rng.randbytes(900)
    world.service._checks._seen._most = 2
    uploads = [await world.client.create(900, headers=digest(content)) for _ in range(4)]
    for upload in uploads:
        await send(world, upload, content[:500])
    for upload in uploads:
        await send(world, upload, content[500:])
        await world.client.download(upload)


@scenario(settings={"shutdown_grace": 1.0})
async def the_reading_for_a_digest_ends_with_the_server_and_comes_again(world: DirectedWorld) -> None:
    content = world.client.rng.randbytes(40_000)
    upload = await world.client.create(40_000, headers=digest(content))
    await send(world, upload, content[:30_000])
    await world.restart(world.host)
    service = world.service
    service.interrupt_hooks()
    await send(world, upload, content[30_000:], status=503)
    record = await record_of(world, upload)
    world.check(record.status is Status.FINISHING, f"the upload is {record.status}")
    await world.restart(world.host)
    upload.last_offset, upload.known = 40_000, bytearray(content)
    await world.client.look(upload)
    await world.client.download(upload)


@scenario()
async def a_final_upload_has_the_digest_of_all_its_parts(world: DirectedWorld) -> None:
    content = world.client.rng.randbytes(5000)
    parts = [await world.client.create(2500, "partial") for _ in range(2)]
    await send(world, parts[0], content[:2500])
    await send(world, parts[1], content[2500:])
    names = "final;" + " ".join(part.path for part in parts)
    await world.client.ask("POST", "/files", {"Upload-Concat": names, **digest(content[:-1])}, status=460)
    answer = await world.client.ask("POST", "/files", {"Upload-Concat": names, **digest(content)}, status=201)
    final = Expected(world.next_upload(), 5000, kind="final", parts=tuple(parts))
    world.client._named(final, answer)
    final.join_parts()
    await world.client.look(final)
    await world.client.download(final)


@scenario(settings={"quota_bytes": 5000})
async def an_append_that_a_quota_refuses_leaves_what_was_seen(world: DirectedWorld) -> None:
    content = world.client.rng.randbytes(2000)
    upload = await create(world, None, planned=2000, conditions=condition(content))
    await send(world, upload, content[:1500])
    await refused(
        world,
        QuotaExceeded,
        lambda service: service.append(upload.id, AppendRequest(upload.last_offset, Body(bytes(6000)))),
    )
    await send(world, upload, content[1500:], headers={"Upload-Length": "2000"})
    await world.client.download(upload)
    plain = await create(world, None, planned=2000)
    await append(world, plain, 1000, arrived=False)
    await refused(
        world,
        QuotaExceeded,
        lambda service: service.append(plain.id, AppendRequest(plain.last_offset, Body(bytes(6000)))),
    )
    await append(world, plain, 1000, length=2000)


# Scans.


class Scanner:
    """A scanner that gives the answers of a scenario, one after the other, and the last one again and again."""

    def __init__(self, *answers: str | ScanImpossible | float) -> None:
        """Take names of malware, errors, and seconds after which a file is found to be clean."""
        self.answers = list(answers)
        self.scanned: list[int] = []

    async def scan(self, pieces: AsyncIterator[Buffer]) -> str:
        content = b"".join([bytes(piece) async for piece in pieces])
        self.scanned.append(len(content))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, ScanImpossible):
            raise ScanImpossible(str(answer), too_large=answer.too_large, cut_at=answer.cut_at)
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            return ""
        return answer


async def have(world: DirectedWorld, *answers: str | ScanImpossible | float) -> Scanner:
    """Start the server again with a scanner that gives these answers."""
    scanner = Scanner(*answers)
    vars(tusd_py.composition)["ClamdScanner"] = lambda _: scanner
    await world.restart(world.host)
    return scanner


async def stuck(world: DirectedWorld, size: int, status: int) -> Expected:
    """Return an upload with all its bytes whose last PATCH was answered with this status."""
    upload = await world.client.create(size)
    content = world.client.rng.randbytes(size)
    await send(world, upload, content, status=status)
    upload.known, upload.last_offset = bytearray(content), size
    return upload


@scenario(settings={"clamd": CLAMD})
async def malware_is_removed_and_nothing_else(world: DirectedWorld) -> None:
    scanner = await have(world, "Eicar", "")
    infected = await stuck(world, 2000, 422)
    await gone(world, infected)
    upload = await world.complete(2500)
    await world.client.download(upload)
    parts = [await world.complete(size, "partial") for size in (1000, 800)]
    final = await world.client.join(parts)
    await world.client.download(final)
    scanner.answers = ["Eicar"]
    names = " ".join(part.path for part in parts)
    await world.client.ask("POST", "/files", {"Upload-Concat": f"final;{names}", METADATA: "a"}, status=422)
    world.check(scanner.scanned == [2000, 2500, 1800, 1800], f"files of {scanner.scanned} bytes were scanned")


@scenario(settings={"clamd": CLAMD})
async def what_the_scanner_cuts_twice_at_one_place_is_too_large(world: DirectedWorld) -> None:
    await have(world, ScanImpossible("cut", cut_at=1000))
    upload = await stuck(world, 3000, 413)
    await gone(world, upload)


@scenario(settings={"clamd": CLAMD, "sweep_interval": 0})
async def what_the_scanner_cuts_once_or_elsewhere_waits(world: DirectedWorld) -> None:
    far = ScanImpossible("cut", cut_at=1 << 30)
    scanner = await have(world, ScanImpossible("cut", cut_at=5), far, ScanImpossible("cut", cut_at=5), "")
    waiting = await stuck(world, 3000, 503)
    record = await record_of(world, waiting)
    world.check(record.status is Status.FINISHING, f"what was not scanned is {record.status}")
    await world.client.ask("GET", waiting.path, status=404)
    upload = await world.complete(2000)  # cut once, as of a scanner that is restarted
    world.check(len(scanner.scanned) == 4, f"there were {len(scanner.scanned)} scans")
    await world.client.download(upload)
    await world.client.look(waiting)
    await world.client.download(waiting)


@scenario(settings={"clamd": CLAMD, "scan_timeout": 4.0, "sweep_interval": 0})
async def scans_that_take_too_long_make_uploads_wait(world: DirectedWorld) -> None:
    scanner = await have(world, 100.0)
    uploads = [await world.client.create(500) for _ in range(8)]
    contents = [world.client.rng.randbytes(500) for _ in uploads]
    sending = [send(world, upload, content, status=503) for upload, content in zip(uploads, contents, strict=True)]
    await asyncio.gather(*sending)
    world.check(
        len(scanner.scanned) == 6, f"{len(scanner.scanned)} of eight files are scanned in the time of two scans"
    )
    told: list[str] = []
    scanner.answers = [100.0]
    before = world.loop.now
    await world.on(world.host, lambda service: Sweeper(service).sweep(told.append, patience=10.0))
    world.check(len(told) >= 4, f"a sweep tells of {told}")
    world.check(world.loop.now - before < 60, "one sweep waits for every hanging scan")
    scanner.answers = [""]
    for upload, content in zip(uploads, contents, strict=True):
        upload.known, upload.last_offset = bytearray(content), 500
        await world.client.look(upload)
        await world.client.download(upload)


@scenario(settings={"clamd": CLAMD, "shutdown_grace": 1.0, "sweep_interval": 0})
async def a_scan_ends_with_the_server_and_comes_again(world: DirectedWorld) -> None:
    scanner = await have(world, 1000.0)
    upload = await world.client.create(700)
    content = world.client.rng.randbytes(700)
    sending = asyncio.ensure_future(send(world, upload, content, status=503))
    await until(world, lambda: bool(scanner.scanned), "the scan")
    await world.stop(world.host)
    await sending
    scanner.answers = [""]
    await world.host.start()
    upload.known, upload.last_offset = bytearray(content), 700
    await world.client.look(upload)
    await world.client.download(upload)
    world.check(scanner.scanned == [700, 700], f"the file was scanned as {scanner.scanned}")


@scenario(settings={"clamd": CLAMD, "scan_fail": "open", "scan_max_size": 1000, "scan_timeout": 3.0})
async def uploads_are_taken_without_a_scan_where_that_is_allowed(world: DirectedWorld) -> None:
    scanner = await have(world, ScanImpossible("away"), 50.0, "Eicar")
    for size in (900, 901, 2000):  # the scanner is away, is silent, and does not take so many bytes
        await world.client.download(await world.complete(size))
    world.check(scanner.scanned == [900, 901], f"files of {scanner.scanned} bytes were scanned")
    await gone(world, await stuck(world, 800, 422))


@scenario(settings={"clamd": CLAMD, "scan_timeout": 0, "sweep_interval": 0})
async def scans_without_a_limit_of_time_end_with_the_server(world: DirectedWorld) -> None:
    scanner = await have(world, 90.0)
    upload = await world.complete(600)  # after 90 s
    await world.client.download(upload)
    service = world.service
    service.interrupt_hooks()
    waiting = await stuck(world, 500, 503)
    await world.restart(world.host)
    scanner.answers = [""]
    await world.client.look(waiting)
    await world.client.download(waiting)
