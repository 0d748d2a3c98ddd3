"""Objects become one: copied by S3 as far as it can, through memory where a part would be too small."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tusd_py.backends.s3.body import multipart_etag
from tusd_py.backends.s3.bucket import Bucket, Multipart
from tusd_py.backends.s3.config import MAX_OBJECT, MIB, S3Config
from tusd_py.backends.s3.errors import MultipartMissing, ObjectMissing
from tusd_py.backends.s3.layout import Layout, layout_of
from tusd_py.backends.s3.object_keys import object_key
from tusd_py.backends.s3.part_sizes import COPY_SIZE, Piece, Slice, choose_sizes, plan_copies, plan_equal
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import (
    MaxSizeExceeded,
    ServerShutdown,
    StorageBehind,
    StorageUnavailable,
    UploadError,
    UploadNotFound,
)
from tusd_py.core.upload import Upload, UploadPart

ONE_COPY = 64 << 20  # bytes; a single source up to this size is copied in one request


async def concatenate(engine: Bucket, final: Upload, partials: Sequence[Upload]) -> Layout:
    """Make the object of `final`; returns its layout.

    Raises `UploadNotFound` if a partial upload is no longer there.
    """
    key = object_key(engine.config, final)
    sources = [Slice(_source(engine.config, partial), 0, partial.offset) for partial in partials if partial.offset]
    length = sum(source.size for source in sources)
    try:
        if length <= engine.config.part_size and (len(sources) != 1 or not engine.config.capabilities.part_copy):
            async with engine.copies:
                await _put(engine, final, key, sources, length)
        elif len(sources) == 1 and length <= ONE_COPY and engine.config.capabilities.part_copy:
            async with engine.copies:
                await engine.copy_object(final, key, sources[0].key)
        else:
            await _assemble(engine, final.at(length), key, plan(engine.config, sources, length))
    except (ObjectMissing, StorageBehind):
        raise UploadNotFound("a partial upload is no longer there") from None
    return Layout(key=key, whole=True)


def _source(config: S3Config, partial: Upload) -> str:
    return layout_of(partial).key or object_key(config, partial)


def plan(config: S3Config, sources: Sequence[Slice], length: int) -> list[Piece]:
    """The parts of the object."""
    if length > MAX_OBJECT:
        raise MaxSizeExceeded(f"the storage takes objects of at most {MAX_OBJECT} bytes")
    capabilities = config.capabilities
    if capabilities.part_copy and not capabilities.equal_parts:
        copy_size = max(COPY_SIZE, -(-length // (capabilities.max_parts // 2) // MIB + 1) * MIB)
        pieces = plan_copies(sources, copy_size)
        if len(pieces) <= capabilities.max_parts:
            return pieces
    sizes = choose_sizes(length, config.part_size, capabilities.max_parts, equal=True, largest=config.largest_part)
    room = sizes.left(1)
    if length > room:
        raise MaxSizeExceeded(f"the storage can put at most {room} bytes together from so many partial uploads")
    return plan_equal(sources, sizes.first)


async def _put(engine: Bucket, final: Upload, key: str, sources: Sequence[Slice], length: int) -> None:
    await engine.memory.take(length)
    try:
        await engine.put_object(final, key, await _fetch(engine, sources), final.token)
    finally:
        engine.memory.release(length)


async def _fetch(engine: Bucket, slices: Sequence[Slice]) -> list[Buffer]:
    pieces: list[Buffer] = []
    for piece in slices:
        async with engine.slots:
            found = await engine.fetch(piece)
        if sum(map(len, found)) < piece.size:
            raise StorageUnavailable("a partial upload is shorter than its record says")
        pieces += found
    return pieces


async def _assemble(engine: Bucket, final: Upload, key: str, pieces: Sequence[Piece]) -> None:
    copied = engine.config.capabilities.part_copy and any(piece.can_be_copied for piece in pieces)
    multipart = await engine.create_multipart(final, key, copied=copied)
    try:
        parts = await _make_parts(engine, multipart, pieces)
        await _complete(engine, final, multipart, parts)
    except UploadError as error:
        try:
            await engine.abort(key, multipart.id)
        except UploadError:
            pass  # the janitor finds it
        if isinstance(error, MultipartMissing):  # which costs nothing but another try
            raise StorageUnavailable("the multipart upload was aborted") from None
        raise


async def _complete(engine: Bucket, final: Upload, multipart: Multipart, parts: Sequence[UploadPart]) -> None:
    try:
        await engine.complete_multipart(multipart, parts)
    except MultipartMissing:
        pass  # perhaps because an earlier try went through, whose answer never came
    etag = multipart_etag([part.etag for part in parts])
    if not await engine.is_placed(final, multipart.key, multipart.marker, etag):
        raise StorageUnavailable("the stored object is not what the parts should make")


async def _make_parts(engine: Bucket, multipart: Multipart, pieces: Sequence[Piece]) -> list[UploadPart]:
    """All parts, a few at a time, of all concatenations together too; waits for all of them even if one fails."""
    free = asyncio.Semaphore(engine.config.parts_in_flight)
    failed = False

    async def make(number: int, start: int, piece: Piece) -> UploadPart:
        nonlocal failed
        async with free, engine.copies:
            if engine.is_interrupted:
                raise ServerShutdown("the concatenation was interrupted; it will be made again")
            if failed:
                raise StorageUnavailable
            try:
                return await _make_part(engine, multipart, number, start, piece)
            except UploadError:
                failed = True
                raise

    making = []
    start = 0
    for number, piece in enumerate(pieces, 1):
        making.append(make(number, start, piece))
        start += piece.size
    results = await asyncio.gather(*making, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise next((error for error in errors if isinstance(error, ObjectMissing)), errors[0])
    return [result for result in results if isinstance(result, UploadPart)]


async def _make_part(engine: Bucket, multipart: Multipart, number: int, start: int, piece: Piece) -> UploadPart:
    if piece.can_be_copied and engine.config.capabilities.part_copy:
        return await engine.copy_part(multipart, number, start, piece.slices[0])
    await engine.memory.take(piece.size)
    try:
        return await engine.upload_part(multipart, number, start, await _fetch(engine, piece.slices))
    finally:
        engine.memory.release(piece.size)
