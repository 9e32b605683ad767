"""Creates the server's Flask application and all of its services."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from flask import Flask

from halt.assets import STATIC, TEMPLATES
from halt.chat.answer_pictures import AnswerPictures
from halt.chat.builtin_tools import BUILTIN_TOOLS
from halt.chat.presets import Presets
from halt.chat.prompts import Prompts
from halt.chat.service import ChatService
from halt.chat.titles import Titles
from halt.chat.uploads import Uploads
from halt.cli import commands
from halt.cluster.bus import Bus
from halt.cluster.membership import Membership
from halt.cluster.service import Workers
from halt.config.environment import load
from halt.config.provider_file import read_prompts
from halt.config.settings import Config
from halt.connected.listing import Listing
from halt.connected.service import ConnectedProviders
from halt.connected.vault import make_vault
from halt.core.request import Upstream
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.core.tools import Tool, Toolbox
from halt.people.accounts import Accounts
from halt.people.attempts import Attempts
from halt.people.known import Known
from halt.people.person import mode_of
from halt.people.proxy_header import ProxyHeader
from halt.people.watch import Watch
from halt.providers.catalog import Catalog
from halt.providers.discovery import make_discovery
from halt.providers.factory import make_provider, make_upstream
from halt.providers.last_model import LastModel
from halt.providers.router import Providers, as_providers
from halt.rendering.renderer import Renderer
from halt.store.lookups import Lookups
from halt.store.migrate import database, has_database
from halt.store.rate_counters import counters_in
from halt.store.replay import Replay
from halt.store.store import Store
from halt.store.writer import StoreWriter
from halt.web import cors, identity, proxies, responses, security, server_check, static_files, via
from halt.web.api import document, openai, stop, streams, text
from halt.web.page import account, endings, oidc, sidebar, times
from halt.web.page import files as files_page
from halt.web.page import providers as providers_page
from halt.web.page import routes as pages
from halt.web.page import settings as page_settings
from halt.web.page.stop import stop_fragment
from halt.web.rate_limits import RateLimits
from halt.web.request_ids import RequestContext, add_to_log
from halt.web.services import Services
from halt.web.sessions import Sessions
from halt.web.starts import count_starts
from halt.web.websocket import routes as sockets

if TYPE_CHECKING:
    from halt.people.oidc.provider import Provider


def create_app(
    config: Config | None = None,
    upstream: Upstream | None = None,
    tools: Iterable[Tool | Callable[..., Any]] = (),
) -> Flask:
    """Create the application. `config` and `upstream` default to those of the environment.

    `tools` are offered to models in addition to those of HALT_TOOLS: typed functions, or
    `halt.core.tools.Tool`. Raises ConfigError, also for a server in which Stop cannot work, and
    TypeError or ValueError for functions that cannot be tools.
    """
    settings = config or load()
    server_check.check(settings)
    app = Flask(__name__, static_folder=STATIC, template_folder=TEMPLATES)
    app.config.update(
        SECRET_KEY=settings.secret_key,  # empty: see `halt.web.sessions`
        MAX_CONTENT_LENGTH=settings.max_body_bytes,
        MAX_FORM_MEMORY_SIZE=settings.max_body_bytes,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=timedelta(days=365),
    )
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    static_files.install(app)
    endings.install(app.jinja_env)
    cors.install(app, settings.cors_origins)
    security.install(app)
    responses.install(app)
    proxies.install(app, settings.trusted_proxies)

    store = Store(database(settings.data_folder, settings.database_url), settings.events_days)
    membership = Membership(settings.data_folder)
    lookups = Lookups()
    store_writer = StoreWriter(store.generations, membership.name, lookups)
    replay = Replay(store.generations, membership.is_alive, settings.run_timeout, lookups)
    membership.recover = replay.recover_worker
    instance_id = via.instance_id_of(settings.data_folder)
    discovery = make_discovery(settings, instance_id) if upstream is None else None
    last_model = LastModel(settings.data_folder / "last_model")
    stop_registry = StopRegistry()
    workers = Workers(Bus(membership), stop_registry, replay)
    providers = as_providers(
        upstream
        or make_upstream(settings, instance_id=instance_id, discovery=discovery, last=last_model)
    )
    generations = workers.service = GenerationService(
        settings,
        providers,
        stop_registry,
        store_writer,
        workers,
    )

    titles = Titles(
        generations.upstream,
        settings,
        store.conversations.title_from_model,
        lambda: generations.idle,
        store.conversations.is_listed,
    )
    generations.on_begin, generations.on_release = titles.interrupt, titles.wake
    mode = mode_of(settings)
    known = _known(settings, store, workers)
    generations.readers.credential = identity.reader_credential
    toolbox = Toolbox([*(BUILTIN_TOOLS[name] for name in settings.tools), *tools])
    catalog, uploads = Catalog(providers, discovery), Uploads(settings, store.files)
    app.session_interface = sessions = Sessions(settings)
    app.extensions["halt"] = Services(
        config=settings,
        mode=mode,
        known=known,
        watch=None if known is None else Watch(mode, known, store, generations),
        oidc=_provider(settings) if mode == "oidc" else None,
        accounts=_accounts(settings, store),
        proxy_header=ProxyHeader(settings.user_header, settings.proxy_addresses),
        instance_id=instance_id,
        generations=generations,
        make_generations=partial(commands.make_generations, upstream=upstream),
        store=store,
        store_writer=store_writer,
        replay=replay,
        chat=ChatService(
            settings,
            generations,
            store,
            store_writer,
            titles,
            toolbox,
            count_starts,
            catalog.require_model,
            catalog.abilities_of,
            AnswerPictures(store.pictures, uploads),
        ),
        prompts=Prompts(store.named_prompts, read_prompts(settings)),
        presets=Presets(store.presets),
        catalog=catalog,
        connected=_connected(settings, store, workers, providers, instance_id),
        providers_listing=Listing(settings, providers, discovery),
        tools=toolbox,
        titles=titles,
        renderer=Renderer(),
        uploads=uploads,
        sessions=sessions,
        rate_limits=(
            RateLimits(settings) if settings.rate_session or settings.rate_address else None
        ),
    )
    app.jinja_env.globals.update(
        shown_name=catalog.shown_name, saving_status=lambda: store_writer.saving
    )

    app.register_blueprint(pages.blueprint)
    if mode == "oidc":
        app.register_blueprint(oidc.blueprint)
    for part in (sidebar, page_settings, account, providers_page, files_page, times):
        part.install(app)
    app.register_blueprint(streams.blueprint)
    app.register_blueprint(text.blueprint)
    app.register_blueprint(openai.blueprint)
    app.register_blueprint(document.blueprint)
    sockets.install(app)
    app.register_blueprint(stop.blueprint(stop_fragment, generations.upstream))
    commands.install(app)
    app.wsgi_app = RequestContext(app.wsgi_app)  # type: ignore[method-assign]
    add_to_log()
    # Built here, because first requests would build them concurrently:
    for name in app.jinja_env.list_templates():
        app.jinja_env.get_template(name)
    app.url_map.update()
    return app


def _provider(settings: Config) -> Provider:
    """The provider of HALT_OIDC_ISSUER. Its libraries take 11 MB, so only it imports them."""
    from halt.people.oidc.provider import Provider  # noqa: PLC0415

    return Provider(settings)


def _connected(
    settings: Config, store: Store, workers: Workers, providers: Providers, instance_id: str
) -> ConnectedProviders:
    """The providers that were connected on the page, applied once. Creates no database."""
    connected = ConnectedProviders(
        settings,
        store.connected,
        make_vault(settings),
        providers,
        partial(make_provider, instance_id=instance_id),
        workers.wake,
    )
    workers.on_wake = connected.wake
    if has_database(settings.data_folder, settings.database_url):
        connected.look()
    return connected


def _known(settings: Config, store: Store, workers: Workers) -> Known | None:
    """Finds the people of sign-ins and API tokens. None where there are none."""
    mode = mode_of(settings)
    if mode not in {"accounts", "header", "oidc"} and not settings.token:
        return None
    known = Known(store.sign_ins, mode, settings.admins, Lookups(), workers.who)
    workers.who_here = known.who
    return known


def _accounts(settings: Config, store: Store) -> Accounts | None:
    """The accounts, where people sign in with names and passwords."""
    if mode_of(settings) != "accounts":
        return None
    return Accounts(store.accounts, Attempts(counters_in(settings.data_folder)))
