"""Storage in an S3 bucket: multipart uploads straight from memory. The configuration needs no package of AWS."""
