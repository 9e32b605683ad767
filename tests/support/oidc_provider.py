"""An OpenID Connect provider for tests: a real server that checks what providers check.

It signs its person in without asking, or by a form. `faults` makes it misbehave; each kind of fault
is a name.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import threading
import time
from html import escape
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT_ID, CLIENT_SECRET = "halt-tests", "a-client-secret-of-tests"
TIMEOUT = 40.0  # seconds
SIGNED_OUT = "Signed out at the provider."


class OidcProvider:
    """Discovery, keys, authorization, tokens, details of a person, and the end of a session."""

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {"sub": "ada-1", "name": "Ada Lovelace"}
        self.info: dict[str, Any] = {}  # what the person's details have beside `sub`
        self.faults: set[str] = set()
        self.codes: dict[str, dict[str, str]] = {}  # the requests whose codes are not redeemed
        self.issued: list[str] = []  # codes and tokens, which Halt must not show or log
        self.paths: list[str] = []  # of all requests
        self.auth_method = "client_secret_basic"  # the one that it accepts
        self.alg = "RS256"
        self.has_form = False  # on which the person allows the sign-in
        self.key: Any = RSAKey.generate_key(2048, {"kid": "first"})
        self.released = threading.Event()  # ends the silence of the fault "silent"
        provider = self

        class Handler(_Handler):
            pass

        Handler.provider = provider
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.issuer = f"http://127.0.0.1:{self._server.server_port}"
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.settings = {
            "HALT_OIDC_ISSUER": self.issuer,
            "HALT_OIDC_CLIENT_ID": CLIENT_ID,
            "HALT_OIDC_CLIENT_SECRET": CLIENT_SECRET,
        }

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def rotate(self) -> None:
        """Sign with a new key from now on, and publish that one alone."""
        self.key = RSAKey.generate_key(2048, {"kid": secrets.token_hex(4)})

    def metadata(self) -> dict[str, Any]:
        value: dict[str, Any] = {
            "issuer": "http://127.0.0.1:1" if "other metadata" in self.faults else self.issuer,
            "jwks_uri": f"{self.issuer}/keys",
            "token_endpoint_auth_methods_supported": [self.auth_method],
            "scopes_supported": ["openid", "profile", "email", "groups"],
        }
        for name in ("authorization", "token", "userinfo", "end_session"):
            value[f"{name}_endpoint"] = f"{self.issuer}/{name}"
        if "no end" in self.faults:
            del value["end_session_endpoint"]
        if "huge" in self.faults:
            value["padding"] = "x" * 2_000_000
        if "plain" in self.faults:
            value["token_endpoint"] = "http://login.example.com/token"
        return value

    def authorize(self, query: dict[str, str]) -> str:
        """Where the browser goes next, with a code."""
        assert query["client_id"] == CLIENT_ID
        assert query["code_challenge_method"] == "S256"
        assert query["response_type"] == "code"
        code = secrets.token_urlsafe(16)
        self.codes[code] = query
        self.issued.append(code)
        more = {"state": query["state"], "code": code}
        if "denied" in self.faults:
            words = "The <b>owner</b> said no."
            more = {"state": query["state"], "error": "access_denied", "error_description": words}
        return f"{query['redirect_uri']}?{urlencode(more)}"

    def redeem(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to a code."""
        basic = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        client = (authorization, form.get("client_id"), form.get("client_secret"))
        expected = {
            "client_secret_basic": (f"Basic {basic}", None, None),
            "client_secret_post": ("", CLIENT_ID, CLIENT_SECRET),
            "none": ("", CLIENT_ID, None),
        }
        if client != expected[self.auth_method]:
            return 401, {"error": "invalid_client"}
        code = form["code"]
        request = self.codes.pop(code, None)
        if request is None:
            return 400, {"error": "invalid_grant", "error_description": f"{code} was used."}
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        if _base64(digest) != request["code_challenge"] or "wrong verifier" in self.faults:
            return 400, {"error": "invalid_grant", "error_description": "The verifier is wrong."}
        if form["redirect_uri"] != request["redirect_uri"]:
            return 400, {"error": "invalid_grant", "error_description": "Another redirect_uri."}
        token = {"access_token": secrets.token_urlsafe(16), "token_type": "Bearer"}
        token["id_token"] = self._id_token(request["nonce"])
        self.issued += [token["access_token"], token["id_token"]]
        return 200, token

    def _id_token(self, nonce: str) -> str:
        at, faults = int(time.time()), self.faults
        claims: dict[str, Any] = {
            "iss": "http://127.0.0.1:1" if "issuer" in faults else self.issuer,
            "aud": "another-client" if "audience" in faults else CLIENT_ID,
            "nonce": "another" if "nonce" in faults else nonce,
            "iat": at + 90 if "future" in faults else at + 30,  # 30 s are within the skew
            "exp": at - 90 if "expired" in faults else at - 30 if "skew" in faults else at + 300,
            **self.claims,
        }
        if "party" in faults:
            claims |= {"aud": [CLIENT_ID, "another-client"], "azp": "another-client"}
        header = {"alg": self.alg, "kid": str(self.key.kid)}
        if "none" in faults:
            return _unsigned({"alg": "none"}, claims) + "."
        if "HS256" in faults:  # as if the public key were a secret
            text = _unsigned({**header, "alg": "HS256"}, claims)
            digest = hmac.digest(self.key.as_pem(private=False), text.encode(), "sha256")
            return f"{text}.{_base64(digest)}"
        key = RSAKey.generate_key(2048) if "signature" in faults else self.key
        if "unknown key" in faults:
            header["kid"] = "never-published"
        return jwt.encode(header, claims, key, algorithms=[self.alg])


def consent(address: str) -> str:
    """Follow a link to the provider, as a browser does; where it sends the browser."""
    url = urlsplit(address)
    connection = HTTPConnection(str(url.hostname), url.port or 80, timeout=TIMEOUT)
    with contextlib.closing(connection):
        connection.request("GET", f"{url.path}?{url.query}")
        response = connection.getresponse()
        assert response.status == 302
        return str(response.getheader("Location"))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unsigned(header: dict[str, Any], claims: dict[str, Any]) -> str:
    """A token without its signature."""
    return ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))


class _Handler(BaseHTTPRequestHandler):
    provider: OidcProvider

    def do_GET(self) -> None:
        provider, url = self.provider, urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        provider.paths.append(url.path)
        if "silent" in provider.faults:
            provider.released.wait()
        if url.path == "/.well-known/openid-configuration":
            self._send(200, provider.metadata())
        elif url.path == "/keys":
            self._send(200, {"keys": [provider.key.as_dict(private=False, use="sig")]})
        elif url.path == "/authorization" and provider.has_form:
            form = f'<form method="post" action="{escape(self.path)}"><button>Allow</button></form>'
            self._send(200, form.encode())
        elif url.path == "/authorization":
            self._send(302, b"", Location=provider.authorize(query))
        elif url.path == "/userinfo":
            known = self.headers["Authorization"].removeprefix("Bearer ") in provider.issued
            subject = "somebody-else" if "details" in provider.faults else provider.claims["sub"]
            is_well = known and "no details" not in provider.faults
            self._send(200 if is_well else 500, {"sub": subject, **provider.info})
        elif url.path == "/end_session":
            assert query["id_token_hint"] in provider.issued
            back = query["post_logout_redirect_uri"]
            self._send(200, f'<p>{SIGNED_OUT}</p><a href="{back}">Back</a>'.encode())
        else:
            self._send(404, {"error": "not_found"})

    def do_POST(self) -> None:
        self.provider.paths.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        if "broken" in self.provider.faults:
            self._send(502, b"<h1>Bad gateway</h1>")
            return
        if self.path.startswith("/authorization"):
            query = dict(parse_qsl(urlsplit(self.path).query))
            self._send(302, b"", Location=self.provider.authorize(query))
            return
        self._send(*self.provider.redeem(form, self.headers.get("Authorization", "")))

    def _send(self, status: int, body: bytes | dict[str, Any], **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if data is body else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """No output."""
