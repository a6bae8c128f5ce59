"""Fetch over HTTPS: short connect time-outs, cut transfers resumed, and errors that say which URL and why."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from watchpost.artifacts.errors import ArtifactError, Unreachable
from watchpost.artifacts.progress import say

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_CONNECT_TIMEOUT = 4.0  # seconds: a host that is not to be had must not hold up the fall-back
_READ_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 16  # bytes; what a cut connection loses at most
_ATTEMPTS = 4
_PAUSE = 1.0  # seconds before the first retry; each further wait is twice as long
_NOT_ITS_OWN_ANSWER = {
    403,
    407,
    429,
    500,
    502,
    503,
    504,
}  # of a proxy or an overloaded server: says nothing of the file


class NotFound(ArtifactError):
    """The server answers, and has no such file."""


class Downloader:
    """One client for a run; it remembers which hosts could not be reached, so that each is tried once."""

    def __init__(self) -> None:
        """Connect to nothing yet."""
        self._unreachable: dict[str, str] = {}
        self._opened: httpx.Client | None = None

    def text(self, url: str) -> str:
        """Return a small text file."""

        def whole() -> str:
            with self._get(url) as response:
                response.read()
                return response.text

        return self._attempt(url, whole)

    def file(self, url: str, to: Path) -> None:
        """Write a file, going on where a cut connection left off. What it holds is the caller's to verify."""
        to.write_bytes(b"")

        def rest() -> None:
            have = to.stat().st_size
            with self._get(url, {"Range": f"bytes={have}-"} if have else {}) as response:
                resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
                    f"bytes {have}-"
                )
                with to.open("ab" if resumed else "wb") as file:
                    for chunk in response.iter_raw(_CHUNK):
                        file.write(chunk)

        self._attempt(url, rest)

    def _attempt(self, url: str, get: Callable[[], T]) -> T:
        import httpx

        host = urlsplit(url).netloc
        if host in self._unreachable:
            raise Unreachable(self._unreachable[host])
        reason = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                say(f"{url}: {reason}; trying again ({attempt + 1} of {_ATTEMPTS})")
                time.sleep(_PAUSE * 2 ** (attempt - 1))
            try:
                return get()
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
                self._unreachable[host] = f"{host}: {error}"
                raise Unreachable(self._unreachable[host]) from error
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if status == 404:
                    raise NotFound(f"{url}: HTTP 404, there is no such file") from error
                if status not in _NOT_ITS_OWN_ANSWER:
                    raise ArtifactError(f"{url}: HTTP {status} {error.response.reason_phrase}") from error
                reason = f"HTTP {status}"
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
        raise Unreachable(f"{url}: {reason}, {_ATTEMPTS} times")

    @contextmanager
    def _get(self, url: str, headers: dict[str, str] | None = None) -> Iterator[httpx.Response]:
        with self._client().stream("GET", url, headers={"Accept-Encoding": "identity", **(headers or {})}) as response:
            if response.url.scheme != "https":
                raise ArtifactError(f"{url} leads to {response.url}, which is not HTTPS")
            response.raise_for_status()
            yield response

    def _client(self) -> httpx.Client:
        if self._opened is None:
            import httpx  # here, because a run that finds everything in the store needs no client

            self._opened = httpx.Client(
                verify=ssl.create_default_context(),  # the system's CAs, or those of $SSL_CERT_FILE
                timeout=httpx.Timeout(_READ_TIMEOUT, connect=_CONNECT_TIMEOUT),
                follow_redirects=True,
            )
        return self._opened
