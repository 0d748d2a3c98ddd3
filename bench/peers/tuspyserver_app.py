"""tuspyserver under FastAPI and uvicorn, nothing else; runs in a virtual environment of its own."""

import sys

import uvicorn
from fastapi import FastAPI
from tuspyserver import create_tus_router  # type: ignore[import-not-found, unused-ignore]


def main() -> None:
    port, directory = sys.argv[1:]
    app = FastAPI()
    app.include_router(create_tus_router(prefix="files", files_dir=directory))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
