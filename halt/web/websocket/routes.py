"""Many streams over one WebSocket: the route `GET /ws`."""

from __future__ import annotations

import ssl

from flask import Blueprint, Flask, g, request
from flask_sock import Sock
from simple_websocket import Server
from werkzeug.wrappers import Response
from wsproto.utilities import RemoteProtocolError

from halt.errors import RequestError
from halt.web.client_socket import ClientSocket
from halt.web.identity import credential, owner
from halt.web.requests import client_socket
from halt.web.responses import error_response
from halt.web.services import services
from halt.web.websocket.session import Session
from halt.web.websocket.wire import EarlyDataSelector, Wire

STALL_HEARTBEATS = 0.5  # heartbeats in which a client takes no byte; then it is too slow


def install(app: Flask) -> None:
    """Install the route in the application. `security.guard` checks token and origin before it."""
    settings = services(app).config
    app.config["SOCK_SERVER_OPTIONS"] = {
        "ping_interval": settings.heartbeat,
        "max_message_size": settings.max_body_bytes,
        "receive_bytes": 65_536,
        "selector_class": EarlyDataSelector,
    }
    routes = Blueprint("sockets", __name__)
    sockets = Sock()

    @routes.before_request
    def prepare() -> None:
        """Check and register the connection before the handshake, so errors are HTTP errors."""
        if request.endpoint != "sockets.talk":
            return
        client = client_socket()
        if client is None or isinstance(client, ssl.SSLSocket):
            # Two threads must not use one TLS connection.
            raise RequestError("WebSockets need a proxy in front that ends TLS.", field="Upgrade")
        service = services().generations
        service.readers.take_place()
        g.has_place = True  # set first: the next steps raise if the client has left
        g.wire = Wire(client, service.relay, STALL_HEARTBEATS * service.config.heartbeat)
        if isinstance(client, ClientSocket):
            g.wire.early = client.bytes_after_request
        request.environ["gunicorn.socket"] = g.wire
        # No compression: for such small messages it would cost more than all other work.
        request.environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)

    @routes.teardown_request
    def give_back_place(_: BaseException | None) -> None:
        if wire := g.pop("wire", None):
            wire.release()  # after a failed handshake the server writes the response
        if g.pop("has_place", False):
            services().generations.readers.give_back_place()

    @routes.errorhandler(RemoteProtocolError)
    @routes.errorhandler(UnicodeError)
    def not_a_handshake(fault: Exception) -> Response:
        return error_response(
            RequestError(f"This is no WebSocket handshake: {fault}", field="headers")
        )

    @sockets.route("/ws", bp=routes)  # type: ignore[untyped-decorator]  # flask-sock has no types
    def talk(ws: Server) -> None:
        Session(ws, g.wire, services().generations, owner(), credential()).serve()

    @routes.get("/ws")
    def plain() -> Response:
        raise RequestError("This address speaks WebSocket only.", field="Upgrade")

    app.register_blueprint(routes)
