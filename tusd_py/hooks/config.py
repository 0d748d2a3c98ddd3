"""The settings of the requests to the application."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class HooksConfig(BaseModel):
    """The configuration of requests to the application. Every field is a setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    http_secret_file: Path | None = Field(
        default=None, description="file with secrets that sign requests to the application, one whsec_... a line"
    )
