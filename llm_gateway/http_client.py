"""The HTTP client under the `openai` SDK: one aiohttp session, and of httpx2 only the form of
request that the SDK builds, and of response that it makes its errors of.

No redirects, cookies or authentication flows: a redirect would carry prompts elsewhere, and the
others took as long as the exchange itself. Errors of the network are aiohttp's own.
"""

from __future__ import annotations

import base64
import dataclasses
import ssl
import urllib.parse
import urllib.request
from typing import Any

import aiohttp
import httpx2
from multidict import CIMultiDict
from yarl import URL

_CONNECT_TIMEOUT_S = 5.0
_CONNECTIONS_MAX = 1000
_KEPT_S = 5.0
"""How long an idle connection is kept: servers close theirs, and a request may meet that."""
_ERROR_BYTES_MAX = 256 << 10
"""Of the body of an error, which is read whole; what it says stands at the beginning."""
_BY_BODY = "content-length"
"""Header that aiohttp makes."""
_UNPACKED = b"content-encoding"
"""Header of what aiohttp has unpacked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpProxy:
    """What leads to a server."""

    url: URL
    """Without the credential."""
    headers: dict[str, str] = dataclasses.field(repr=False)
    """For the proxy alone; they hold the credential."""

    @classmethod
    def at(cls, url: str) -> HttpProxy:
        """Return the proxy at a URL, which may hold a credential."""
        parsed, headers = URL(url), {}
        if parsed.user:
            # aiohttp makes the proxy's credential of this header, and warns of its older ways.
            credential = f"{parsed.user}:{parsed.password or ''}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(credential).decode()}"
        return cls(url=parsed.with_user(None), headers=headers)

    @classmethod
    def of_environment(cls, base_url: str) -> HttpProxy | None:
        """Return the one that the environment's usual variables name for a server, if any."""
        parts = urllib.parse.urlsplit(base_url)
        proxies = urllib.request.getproxies()
        url = proxies.get(parts.scheme) or proxies.get("all")
        if not url or urllib.request.proxy_bypass(parts.hostname or ""):
            return None
        return cls.at(url if "://" in url else f"http://{url}")


class HttpPattern:
    """A request without its body, in aiohttp's words: what all requests to one place share."""

    def __init__(self, request: httpx2.Request) -> None:
        """Take over method, URL and headers; the headers hold the key."""
        self.request = request
        """As the SDK built it."""
        self.url = URL(str(request.url), encoded=True)
        """Where it goes."""
        self.headers = CIMultiDict(
            pair for pair in request.headers.multi_items() if pair[0] != _BY_BODY
        )
        """All but what aiohttp makes itself."""


class HttpReply:
    """A response whose head is there. Release it in the end."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._content = response.content
        self.is_good = 200 <= response.status < 300
        """Whether it is an answer, and no error."""

    @property
    def content_type(self) -> str:
        """The header, empty where there is none."""
        return self._response.headers.get("content-type", "")

    @property
    def is_read(self) -> bool:
        """Whether nothing more will come."""
        return self._content.at_eof()

    async def chunk(self) -> bytes:
        """Return what has come since, once something has; nothing at the end."""
        return await self._content.readany()

    async def as_error(self, pattern: HttpPattern) -> httpx2.Response:
        """Return it whole, in the SDK's form, but for what is beyond the first 256 KiB."""
        body = bytearray()
        while len(body) < _ERROR_BYTES_MAX and (chunk := await self.chunk()):
            body += chunk
        response = self._response
        return httpx2.Response(
            response.status,
            headers=[pair for pair in response.raw_headers if pair[0].lower() != _UNPACKED],
            content=bytes(body[:_ERROR_BYTES_MAX]),
            request=pattern.request,
        )

    def release(self) -> None:
        """Leave the connection to others where the body was read to its end; else it closes."""
        self._response.release()


class HttpClient(httpx2.AsyncClient):
    """One endpoint's connections. Close it with its owner."""

    def __init__(self, *, tls: ssl.SSLContext | None, proxy: HttpProxy | None) -> None:
        """Connections are made with `tls`, or with the usual certificates, where the URL wants
        that."""
        super().__init__(transport=_NoTransport(), trust_env=False)
        self._tls = tls
        self._proxy: dict[str, Any] = {}
        if proxy is not None:
            self._proxy = {"proxy": proxy.url, "proxy_headers": proxy.headers}
        self._session: aiohttp.ClientSession | None = None

    async def exchange(self, pattern: HttpPattern, body: bytes) -> HttpReply:
        """Send a body and return the reply as soon as its head is there.

        Raises aiohttp.ClientError and OSError.
        """
        session = self._session or self._opened(pattern.url)
        response = await session.request(
            pattern.request.method,
            pattern.url,
            data=body,
            headers=pattern.headers,
            allow_redirects=False,
            **self._proxy,
        )
        return HttpReply(response)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
        await super().aclose()

    def _opened(self, url: URL) -> aiohttp.ClientSession:
        """Make the session, while the loop runs. Certificates are read only for who needs them."""
        tls = self._tls
        if tls is None and url.scheme == "https":
            tls = httpx2.create_ssl_context()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=_CONNECTIONS_MAX, keepalive_timeout=_KEPT_S, ssl=tls or True
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            # The exchange is timed by who reads it, by its bytes.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        )
        return self._session


class _NoTransport(httpx2.AsyncBaseTransport):
    """Keeps httpx2 from making connections, and certificates for them, that nobody uses."""
