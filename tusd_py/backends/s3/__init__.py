"""Storage in an S3 bucket: multipart uploads straight from memory."""

from tusd_py.backends.s3.config import S3Config
from tusd_py.backends.s3.storage import S3Storage

__all__ = ["S3Config", "S3Storage"]
