# SPDX-License-Identifier: Apache-2.0
"""A token service of ours for Debian's docker-registry: it signs what the registry believes.

Source: distribution's token authentication (spec/auth/jwt.md, spec/auth/oauth.md).
"""

import base64
import json
import ssl
import time
from pathlib import Path

from aiohttp import web

from tests.world.certificates import Authority, sign
from tests.world.image_stores import FaultyServer

USERNAME = "kim"
PASSWORD = "open-sesame"
IDENTITY = "identity-token"


class TokenService(FaultyServer):
    """Gives tokens for what is asked to USERNAME with PASSWORD, or for IDENTITY.

    lifetime_s: how long tokens are good for. granted: the scopes of the tokens given, in order.
    """

    def __init__(self, authority: Authority) -> None:
        super().__init__()
        self._certificate, self._key = authority.issue("tokens", "rsa")
        self.lifetime_s = 60
        self.granted: list[str] = []

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer /token, by GET with a password or by POST with a refresh token."""
        if request.method == "POST":
            form = await request.post()
            words = {name: str(value) for name, value in form.items()}
            known = (words["grant_type"], words["refresh_token"]) == ("refresh_token", IDENTITY)
        else:
            words = dict(request.query)
            pair = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
            known = request.headers.get("Authorization") == f"Basic {pair}"
        if not known or words["service"] != "tests":
            details = {"errors": [{"code": "UNAUTHORIZED", "message": "who are you?"}]}
            return web.json_response(details, status=401)
        self.granted.append(words["scope"])
        return web.json_response({"access_token": self.make_token(words["scope"])})

    def make_token(self, scope: str) -> str:
        """Return a token for `repository:NAME:pull`."""
        kind, name, actions = scope.split(":")
        chain = [base64.b64encode(ssl.PEM_cert_to_DER_cert(self._certificate.read_text())).decode()]
        now = int(time.time())
        claims = {
            "iss": "tests",
            "aud": "tests",
            "sub": USERNAME,
            "jti": str(now),
            "nbf": now - 60,
            "exp": now + self.lifetime_s,
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        head = _encode(json.dumps({"typ": "JWT", "alg": "RS256", "x5c": chain}).encode())
        text = f"{head}.{_encode(json.dumps(claims).encode())}"
        return f"{text}.{_encode(sign(Path(self._key), text.encode()))}"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
