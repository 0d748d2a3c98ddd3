"""A lower bound for the storage in S3: boto3 with the same settings and no tus, which uploads pieces of a file in turn.

`python s3_floor.py ENDPOINT BUCKET FILE UPLOADS SIZE THREADS` prints "ready", and starts when it reads a line.
"""

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from tusd_py.backends.s3.body import crc32, crc32_text
from tusd_py.backends.s3.client import Client
from tusd_py.backends.s3.config import S3Config


async def connect(config: S3Config) -> Any:
    client = Client(config)
    await client.open()
    return client.boto3


def put(client: Any, config: S3Config, file: int, start: int, size: int, key: str) -> None:
    data = os.pread(file, size, start)
    client.put_object(Bucket=config.bucket, Key=key, Body=data, ChecksumCRC32=crc32_text(crc32([data])))


def multipart(
    client: Any, config: S3Config, pool: ThreadPoolExecutor, file: int, start: int, size: int, key: str
) -> None:
    place = {"Bucket": config.bucket, "Key": key}
    place["UploadId"] = client.create_multipart_upload(**place, ChecksumAlgorithm="CRC32")["UploadId"]

    def send(offset: int) -> dict[str, Any]:
        data = os.pread(file, min(config.part_size, size - offset), start + offset)
        number, checksum = offset // config.part_size + 1, crc32_text(crc32([data]))
        answer = client.upload_part(**place, PartNumber=number, Body=data, ChecksumCRC32=checksum)
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": checksum}

    parts = list(pool.map(send, range(0, size, config.part_size)))
    client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})


def main(endpoint: str, bucket: str, path: str, uploads: int, size: int, threads: int) -> None:
    config = S3Config(bucket=bucket, endpoint=endpoint, addressing="path")
    client = asyncio.run(connect(config))
    file = os.open(path, os.O_RDONLY)
    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(threads) as parts, ThreadPoolExecutor(min(uploads, threads)) as pool:
        upload = partial(put, client, config, file)
        if size > config.part_size:
            upload = partial(multipart, client, config, parts, file)
        done = [pool.submit(upload, number * size, size, f"floor-{number}") for number in range(uploads)]
        for future in done:
            future.result()
    print("done", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    server, name, source, *numbers = sys.argv[1:]
    main(server, name, source, *map(int, numbers))
