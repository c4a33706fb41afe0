"""Credentials: a `Url` that shows them to nobody but the driver, and `redact`, which keeps them out of every text (rule R10).

The invariant: whoever makes a `Url` has registered its secrets, so that no log line, error or status of this process can show
them, however a driver words its message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "***"

SECRET_PARAMETERS = frozenset(
    {"password", "sslpassword", "passfile", "oauth_client_secret", "scram_client_key", "scram_server_key"}
)
"""Options in a URL's query whose values are hidden."""

# A password may hold anything, so the last @ before the path ends it; / and ? in it must be percent-encoded, as libpq wants.
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+]*)://(?:(?P<userinfo>[^/?]*)@)?(?P<hosts>[^/?@]*)"
    r"(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?\Z",
    re.DOTALL,
)
_HOST = re.compile(r"(?:\[[^\]]*\]|[^:\[\]]*)(?::\d*)?\Z")
_UNSAFE = re.compile(r"%(?![0-9A-Fa-f]{2})|[^\w.~%!$&'()*+,;=-]", re.ASCII)
_CREDENTIALS_IN_URL = re.compile(r"(?<=://)([^\s/:@]*):[^\s]*@")
_PASSWORD_OPTION = re.compile(r"\b(password|sslpassword)(\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&'\"]+)", re.IGNORECASE)

# A short secret is hidden as a whole word only: a password `shop` must not blacken every `workshop`.
_SHORT = 8

_registered: set[str] = set()
_pattern: re.Pattern[str] | None = None


class Url:
    """A database URL. `str`, `repr`, `format`, JSON and pickle show `***` for each secret; `reveal` is for the driver alone.

    Equality is of the whole URL, secrets included. Raises ValueError, without quoting the text, when it is not a URL.
    """

    __slots__ = ("_hidden", "_parts", "_text")

    def __init__(self, text: str) -> None:
        found = _URL.match(text)
        if found is None:
            raise ValueError("not a URL of the form scheme://user@host:port/database")
        parts = {name: value or "" for name, value in found.groupdict().items()}
        register(_url_secrets(parts))
        if not all(_HOST.match(host) for host in parts["hosts"].split(",")):
            raise ValueError("the host is not host:port (in a password, write / as %2F, ? as %3F and @ as %40)")
        self._parts = parts
        self._text = _assemble(parts, found["userinfo"] is not None, hide=False)
        self._hidden = _assemble(parts, found["userinfo"] is not None, hide=True)

    @property
    def scheme(self) -> str:
        return self._parts["scheme"].lower()

    @property
    def user(self) -> str:
        """The user, decoded; '' when the URL names none."""
        return unquote(self._parts["userinfo"].partition(":")[0]) or self.parameters.get("user", "")

    @property
    def password(self) -> str:
        """The password, decoded; '' when the URL holds none. For the driver alone."""
        return unquote(self._parts["userinfo"].partition(":")[2]) or self.parameters.get("password", "")

    @property
    def hosts(self) -> str:
        """`host:port`, or several with commas, as written."""
        return self._parts["hosts"]

    @property
    def database(self) -> str:
        """The database, decoded; libpq's default (the user) when the URL names none."""
        return unquote(self._parts["database"]) or self.parameters.get("dbname", "") or self.user

    @property
    def parameters(self) -> dict[str, str]:
        """The options after `?`, decoded. Holds secrets."""
        return {unquote(name): unquote(value) for name, value in _query(self._parts["query"])}

    @property
    def location(self) -> str:
        """Which database this is, without credentials or options: equal for two URLs that name the same one in the same words."""
        options = self.parameters
        hosts = self.hosts.lower() or options.get("host", "") + (f":{options['port']}" if "port" in options else "")
        if "," not in hosts and not hosts.rpartition(":")[2].isdigit():
            hosts += ":5432"
        return f"{hosts}/{self.database}"

    def reveal(self) -> str:
        """The whole URL, for the driver. Stray characters in user and password come percent-encoded."""
        return self._text

    def __str__(self) -> str:
        return self._hidden

    def __repr__(self) -> str:
        return f"Url({self._hidden!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __copy__(self) -> Url:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Url:
        return self

    def __reduce__(self) -> tuple[type[PickledUrl], tuple[str]]:
        return PickledUrl, (self._hidden,)


class PickledUrl(Url):
    """What is left of a `Url` that went through pickle: its public parts."""

    __slots__ = ()

    def reveal(self) -> str:
        raise RuntimeError("a pickled URL holds no credentials: the process that connects loads its own configuration")


def register(secrets: Iterable[str]) -> None:
    """From now on `redact` hides these values, in every spelling in which a message could hold them."""
    global _pattern  # noqa: PLW0603  # one process, one set of secrets: every log line has to know all of them
    _registered.update(spelling for secret in secrets for spelling in _spellings(secret))
    _pattern = _compile(_registered)


def redact(text: str, secrets: Iterable[str] | None = None) -> str:
    """`text` with each of `secrets` (default: all that are registered) and every password in a URL or `password=` hidden."""
    given = None if secrets is None else {spelling for secret in secrets for spelling in _spellings(secret)}
    pattern = _pattern if given is None else _compile(given)
    if pattern is not None:
        text = pattern.sub(HIDDEN, text)
    if "://" in text:
        text = _CREDENTIALS_IN_URL.sub(rf"\1:{HIDDEN}@", text)
    return _PASSWORD_OPTION.sub(rf"\1\2{HIDDEN}", text)


def is_exposed(path: Path) -> bool:
    """May every user of this machine read the file?"""
    return bool(path.stat().st_mode & 0o004)


def _compile(spellings: set[str]) -> re.Pattern[str] | None:
    words = sorted(spellings, key=len, reverse=True)
    choices = [re.escape(word) if len(word) >= _SHORT else rf"(?<!\w){re.escape(word)}(?!\w)" for word in words]
    return re.compile("|".join(choices)) if choices else None


def _spellings(secret: str) -> set[str]:
    """The secret as it is, percent-encoded, and escaped as Python and JSON write it."""
    spellings = {secret, unquote(secret), secret.strip()}
    for plain in tuple(spellings):
        spellings |= {quote(plain, safe=""), quote(plain), quote_plus(plain), _encoded(plain), repr(plain)[1:-1]}
        spellings |= {json.dumps(plain)[1:-1], json.dumps(plain, ensure_ascii=False)[1:-1]}
        spellings.update(line for line in plain.splitlines() if len(line) >= _SHORT)
    return spellings - {"", HIDDEN}


def _query(query: str) -> Iterator[tuple[str, str]]:
    for option in query.split("&"):
        name, _, value = option.partition("=")
        if name:
            yield name, value


def _url_secrets(parts: dict[str, str]) -> Iterator[str]:
    yield parts["userinfo"].partition(":")[2]
    for name, value in _query(parts["query"]):
        if unquote(name).lower() == "passfile":
            yield from _passfile_passwords(Path(unquote(value)))
        elif unquote(name).lower() in SECRET_PARAMETERS:
            yield value


def _passfile_passwords(path: Path) -> Iterator[str]:
    """The passwords in a libpq password file, host:port:database:user:password. Unreadable: libpq will say so."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        fields = re.split(r"(?<!\\):", line, maxsplit=4)
        if len(fields) == 5 and not line.startswith("#"):
            yield re.sub(r"\\(.)", r"\1", fields[4])


def _assemble(parts: dict[str, str], has_userinfo: bool, *, hide: bool) -> str:
    """The URL from its parts, credentials percent-encoded or hidden."""
    user, colon, password = parts["userinfo"].partition(":")
    secret = HIDDEN if hide and password else _encoded(password)
    userinfo = f"{_encoded(user)}{colon}{secret}@" if has_userinfo else ""
    options = [
        f"{name}={HIDDEN if hide and unquote(name).lower() in SECRET_PARAMETERS else value}"
        for name, value in _query(parts["query"])
    ]
    path = f"/{parts['database']}" if parts["database"] else "/" if options else ""
    return f"{parts['scheme']}://{userinfo}{parts['hosts']}{path}" + ("?" + "&".join(options) if options else "")


def _encoded(text: str) -> str:
    """Percent-encode what may not stand in user or password; what is percent-encoded already stays."""
    return _UNSAFE.sub(lambda found: quote(found[0], safe=""), text)
