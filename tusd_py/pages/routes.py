"""The routes of the pages and of the files that they load."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from tusd_py.http.errors import HTTPError
from tusd_py.http.text_route import TextRoute, error_answer
from tusd_py.pages.assets import Asset, Assets, load_assets
from tusd_py.pages.policy import page_headers
from tusd_py.server import TusServer

UPLOAD_PAGE = "/"
ADMIN_PAGE = "/admin"
PAGES = {UPLOAD_PAGE: "upload.html", "/record": "record.html"}  # files by their paths
ADMIN_PAGES = {ADMIN_PAGE: "admin.html"}  # where there is the administration API
WORKERS = {"/record-worker.js": "record-worker.js"}
PAGE_CACHING = "no-cache"  # a page is asked for anew, and names the files that belong to it
ASSET_CACHING = "public, max-age=31536000, immutable"  # other content has another name


def page_routes(server: TusServer) -> list[BaseRoute]:
    """Return the routes of the pages for a server that is at `base_path` of the same application."""
    has_admin = server.is_administrated and server.settings.admin_port is None
    paths = {**PAGES, **WORKERS, **(ADMIN_PAGES if has_admin else {})}
    return _routes(server, paths, server.settings.base_path.removeprefix("/"))


def admin_page_routes(server: TusServer) -> list[BaseRoute]:
    """Return the routes of the page of administrators for the port that is theirs alone."""
    return _routes(server, ADMIN_PAGES, None)


def _routes(server: TusServer, paths: Mapping[str, str], endpoint: str | None) -> list[BaseRoute]:
    pages = Pages(server, paths, endpoint)
    headers = page_headers(server.settings.public_url)
    return [
        *(TextRoute(path, partial(pages.page, name), headers) for path, name in paths.items()),
        TextRoute("/assets/config.json", pages.config),
        TextRoute("/assets/{name}", pages.asset),
    ]


class Pages:
    """The pages and their files, which are read at the first request."""

    def __init__(self, server: TusServer, paths: Collection[str], endpoint: str | None) -> None:
        """Tell the pages about `server`.

        Args:
            server: the server of the uploads.
            paths: the paths of the pages that are served together.
            endpoint: the path of the creation URL, relative to the pages; None where no page uploads.
        """
        self._server = server
        self._endpoint = endpoint
        self._paths = paths
        self._assets: Assets | None = None

    async def page(self, name: str, request: Request) -> Response:
        """Answer with a page, by the name of its file."""
        return _response(request, (await self._loaded()).pages[name], PAGE_CACHING)

    async def asset(self, request: Request) -> Response:
        """Answer with a file, by its name with the digest."""
        asset = (await self._loaded()).files.get(request.path_params["name"])
        if asset is None:
            return error_answer(HTTPError(404, "ERR_NOT_FOUND", "there is nothing here"), request.headers)
        return _response(request, asset, ASSET_CACHING)

    async def config(self, request: Request) -> Response:
        """Answer with what the pages have to know of the server; paths are relative to the pages."""
        settings, service = self._server.settings, self._server.service
        config: dict[str, Any] = {
            "endpoint": self._endpoint,
            "max_size": service.options.max_size,
            "allowed_types": list(settings.allowed_types),
            "concatenation": not settings.disable_concatenation and service.can_concatenate,
            "deferred_length": not settings.disable_creation_defer_length,
            "admin": ADMIN_PAGE in self._paths,
            "uploads": UPLOAD_PAGE in self._paths,
            "download": not settings.disable_download,
        }
        return JSONResponse(config, headers={"Cache-Control": "no-store"})

    async def _loaded(self) -> Assets:
        if self._assets is None:
            self._assets = await asyncio.to_thread(load_assets)
        return self._assets


def _response(request: Request, asset: Asset, caching: str) -> Response:
    """Return the answer to a request for a file: in the coding that the client takes, or 304 if the client has it."""
    coding, body = asset.body(request.headers.get("accept-encoding", ""))
    tag = f'"{asset.digest}{f"-{coding}" if coding else ""}"'
    headers = {"Cache-Control": caching, "Vary": "Accept-Encoding", "ETag": tag}
    known = [item.strip().removeprefix("W/") for item in request.headers.get("if-none-match", "").split(",")]
    if tag in known:
        return Response(status_code=304, headers=headers)
    if coding:
        headers["Content-Encoding"] = coding
    return Response(body, media_type=asset.media_type, headers=headers)
