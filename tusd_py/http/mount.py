"""A Starlette route for a mounted tus server."""

from __future__ import annotations

from starlette.routing import Match, Mount
from starlette.types import Scope


class TusMount(Mount):
    """A mount that also matches its own path without a slash at the end, since not every client follows a redirect."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match like `Mount`, and the path of the mount itself."""
        root_path = scope.get("root_path", "")
        if scope["type"] == "http" and scope["path"].removeprefix(root_path) == self.path:
            child_scope = {"endpoint": self.app, "path_params": {}, "root_path": root_path + self.path}
            return Match.FULL, {**child_scope, "app_root_path": scope.get("app_root_path", root_path)}
        return super().matches(scope)
