"""The services of one application, created by `halt.app`, used by routes, commands and worker."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flask import Flask, current_app

from halt.chat.presets import Presets
from halt.chat.prompts import Prompts
from halt.chat.service import ChatService
from halt.chat.titles import Titles
from halt.chat.uploads import Uploads
from halt.config.settings import Config
from halt.connected.listing import Listing
from halt.connected.service import ConnectedProviders
from halt.core.service import GenerationService
from halt.core.tools import Toolbox
from halt.people.accounts import Accounts
from halt.people.known import Known
from halt.people.person import Mode
from halt.people.proxy_header import ProxyHeader
from halt.people.watch import Watch
from halt.providers.catalog import Catalog
from halt.rendering.renderer import Renderer
from halt.store.replay import Replay
from halt.store.store import Store
from halt.store.writer import StoreWriter
from halt.web.rate_limits import RateLimits
from halt.web.sessions import Sessions
from halt.web.token_failures import TokenFailures
from halt.web.trials import Trials

if TYPE_CHECKING:
    from halt.people.oidc.provider import Provider

CLOSE_TIMEOUT = 1.0  # seconds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Services:
    """The objects of which an application has one each. Threads share all of them."""

    config: Config
    mode: Mode  # how it knows its people
    known: Known | None  # None: there are no sign-ins and no API tokens
    oidc: Provider | None  # None: sign-ins are not by OpenID Connect
    accounts: Accounts | None  # None: sign-ins are not by name and password
    watch: Watch | None  # None: no access can end
    proxy_header: ProxyHeader  # for the mode `header`
    instance_id: str  # of this Halt in its requests to models' servers (`halt.web.via`)
    generations: GenerationService
    make_generations: Callable[..., GenerationService]  # for the terminal's commands
    store: Store
    store_writer: StoreWriter
    replay: Replay
    chat: ChatService
    prompts: Prompts
    presets: Presets
    catalog: Catalog
    connected: ConnectedProviders
    providers_listing: Listing
    tools: Toolbox
    titles: Titles
    renderer: Renderer
    uploads: Uploads
    sessions: Sessions
    rate_limits: RateLimits | None  # None: starts are not limited
    token_failures: TokenFailures = field(default_factory=TokenFailures)
    trials: Trials = field(default_factory=Trials)
    #: Set when the demo model has answered once.
    demo_ready: threading.Event = field(default_factory=threading.Event)
    #: Held while a part of an exported file is generated, by one thread at a time: each such thread
    #: delays all others by the interpreter's switch interval.
    exporting: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        """Close the services that hold resources. A failure is logged and the others are closed."""
        if self.watch is not None:
            self.watch.close(CLOSE_TIMEOUT)
        self.trials.close()
        self.connected.close(CLOSE_TIMEOUT)
        if self.known is not None:
            self.known.close(CLOSE_TIMEOUT)
        if self.oidc is not None:
            self.oidc.close()
        pictures, uploads = self.chat.pictures, self.uploads
        parts = (self.generations, self.titles, pictures, uploads, self.store, self.renderer)
        for part in parts:
            try:
                part.close()
            except Exception:
                logger.exception("closing %s", type(part).__name__)


def services(app: Flask = current_app) -> Services:
    """The services of `app`, by default of the application that handles the current request."""
    result: Services = app.extensions["halt"]
    return result
