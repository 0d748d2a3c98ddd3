"""The settings of the events that are stored and delivered."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tusd_py.core.option_types import Names, Seconds
from tusd_py.outbox.sink_urls import SinkAddress, check_sinks, parse_sink_url


class EventsConfig(BaseModel):
    """The sinks of events, and how long an event is tried. Every field is a setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: Annotated[Names, AfterValidator(check_sinks)] = Field(
        default=(),
        repr=False,
        description="where events of uploads are sent: URLs with https, redis, nats, kafka or amqp",
    )
    give_up: Seconds = Field(
        default=3 * 86400,
        gt=0,
        description="try to deliver an event for this long, then keep it as a dead letter",
    )

    @cached_property
    def addresses(self) -> tuple[SinkAddress, ...]:
        """The addresses of the sinks."""
        return tuple(parse_sink_url(url) for url in self.to)
