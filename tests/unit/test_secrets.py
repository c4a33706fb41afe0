"""Nothing that leaves a process shows a credential (rule R10)."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import traceback
from pathlib import Path
from urllib.parse import quote

import psycopg2.extensions
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from cdc import journal, presentation, secrets
from cdc.config_values import DatabaseUrl
from cdc.errors import CdcError
from cdc.secrets import Url, redact

CANARY = "s3cr3t-canary"
HARD = "s3cr3t @:/%?&\n'\"\\é-canary"


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test registers is hidden from no other."""
    monkeypatch.setattr(secrets, "_registered", set())
    monkeypatch.setattr(secrets, "_pattern", None)


def spellings(secret: str) -> set[str]:
    return {secret, quote(secret, safe=""), repr(secret)[1:-1], json.dumps(secret)[1:-1]}


def assert_hidden(text: str, secret: str) -> None:
    for spelling in spellings(secret):
        assert spelling not in text


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://cdc:{CANARY}@db/shop",
        f"postgresql://cdc:{CANARY}@h1:5432,[::1]:5433/shop?sslmode=require",
        f"postgresql://db/shop?user=cdc&password={CANARY}",
        f"postgresql://db/shop?sslpassword={CANARY}&sslkey=/k",
        f"postgresql://:{CANARY}@/shop?host=/run/postgresql",
        f"postgresql://cdc:{CANARY}@db",
        f"postgresql://cdc:{CANARY}%40@db",
    ],
)
def test_only_reveal_shows_the_password(text: str) -> None:
    class Model(BaseModel):
        model_config = {"arbitrary_types_allowed": True}
        url: DatabaseUrl

    url = Url(text)
    model = Model(url=text)  # type: ignore[arg-type]
    shown = [str(url), repr(url), f"{url}", f"{url!r:>200}", url.location, url.hosts, url.database]
    shown += [repr(model), model.model_dump_json(), str(model.model_dump()), json.dumps([url], default=str)]
    shown += [pickle.dumps(url).decode("latin-1"), str(pickle.loads(pickle.dumps(url)))]
    for item in shown:
        assert CANARY not in item
    assert "***" in str(url)
    assert url.reveal() == text
    assert copy.deepcopy(model).url.reveal() == text


def test_a_pickled_url_connects_nowhere() -> None:
    with pytest.raises(RuntimeError):
        pickle.loads(pickle.dumps(Url(f"postgresql://cdc:{CANARY}@db/shop"))).reveal()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_a_percent_encoded_password_of_any_characters_reaches_libpq_and_no_text(password: str) -> None:
    url = Url(f"postgresql://cdc:{quote(password, safe='')}@db/shop?application_name=x")
    assert url.password == password
    assert psycopg2.extensions.parse_dsn(url.reveal())["password"] == password
    assert str(url) == "postgresql://cdc:***@db/shop?application_name=x"


@pytest.mark.parametrize("password", ["a@b", "a:b", "a%b", "100%", "a b", "a\nb", "a#b", "ü"])
def test_stray_characters_are_encoded_for_libpq(password: str) -> None:
    url = Url(f"postgresql://cdc:{password}@db/shop")
    assert psycopg2.extensions.parse_dsn(url.reveal())["password"] == password
    assert url.hosts == "db"


@pytest.mark.parametrize("text", [f"postgresql://cdc:x/{CANARY}@db/shop", f"cdc:{CANARY}@db", f"password={CANARY}", ""])
def test_what_is_no_url_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Url(text)
    assert CANARY not in str(caught.value)


def test_location_tells_databases_apart_whoever_logs_in() -> None:
    here = Url("postgresql://a:x@DB/shop").location
    assert here == Url("postgres://b@db:5432/shop?sslmode=require").location
    assert here != Url("postgresql://a@db/other").location
    assert here != Url("postgresql://a@db:5433/shop").location
    assert Url("postgresql:///shop?host=/tmp&port=99").location == "/tmp:99/shop"


@pytest.mark.parametrize("secret", [CANARY, HARD, f"ends with a line break {CANARY}\n"])
def test_redact_knows_every_spelling(secret: str) -> None:
    for spelling in spellings(secret):
        assert redact(f"before {spelling} after", [secret]) == "before *** after"


def test_a_short_secret_is_hidden_as_a_word_and_a_word_that_holds_it_is_not() -> None:
    assert redact("password shop for the workshop", ["shop"]) == "password *** for the workshop"


def test_urls_and_options_are_hidden_even_when_nobody_registered_them() -> None:
    text = redact("at postgresql://u:unheard@h/d with password=unheard2 and sslpassword = 'unheard 3'")
    assert "unheard" not in text
    assert "u:***@h/d" in text


def test_the_passwords_in_a_passfile_are_hidden(tmp_path: Path) -> None:
    passfile = tmp_path / "pass"
    passfile.write_text(f"# comment\n*:*:*:cdc:pf-{CANARY}\\:x\n")
    url = Url(f"postgresql://cdc@db/shop?passfile={passfile}")
    assert str(passfile) not in str(url)
    assert redact(f"using pf-{CANARY}:x") == "using ***"


@pytest.mark.parametrize("form", ["console", "json"])
@pytest.mark.parametrize("secret", [CANARY, HARD, "pw1"])
def test_no_log_line_shows_a_registered_secret(form: journal.Format, secret: str) -> None:
    url = Url(f"postgresql://cdc:{quote(secret, safe='')}@db/shop")
    stream = io.StringIO()
    journal.configure(form, debug=True, stream=stream)
    try:
        log = journal.journal("cdc.test")
        log.info("static", url=url, text=f"x {secret}", nested={"list": [secret, {secret: 1}]}, raw=url.reveal())
        log.warning("coded", error=CdcError("CDC-CFG-103", f"detail {secret}", where=url.reveal(), remedy=secret))
        try:
            raise RuntimeError(f"\n{secret}") from ValueError(url.reveal())
        except RuntimeError:
            log.exception("failed")
            logging.getLogger("driver").exception("driver says %s %r", secret, secret)
    finally:
        logging.getLogger().handlers.clear()
    text = stream.getvalue()
    assert "driver says" in text
    assert "RuntimeError" in text
    if secret == "pw1":
        assert "pw1" not in text
    assert_hidden(text, secret)


def test_json_log_lines_carry_the_fields_of_a_coded_error() -> None:
    stream = io.StringIO()
    journal.configure("json", stream=stream)
    try:
        journal.bind(pipeline="shop", role="capture")
        journal.journal("cdc.test").error(
            "stopped", error=CdcError("CDC-CFG-108", "no sink", where="a.yaml:3:1"), lag_bytes=7
        )
        journal.journal("cdc.test").debug("not shown")
    finally:
        logging.getLogger().handlers.clear()
        journal.unbind()
    (line,) = stream.getvalue().splitlines()
    event = json.loads(line)
    assert event["pipeline"], event["role"] == ("shop", "capture")
    assert (event["level"], event["event"], event["code"], event["where"]) == (
        "error",
        "stopped",
        "CDC-CFG-108",
        "a.yaml:3:1",
    )
    assert event["lag_bytes"] == 7
    assert event["ts"].endswith("Z")


def test_answers_and_errors_are_redacted() -> None:
    url = Url(f"postgresql://cdc:{quote(HARD, safe='')}@db/shop")
    error = CdcError("CDC-CFG-103", f"detail {HARD}", where=url.reveal(), remedy=f"set {HARD}")
    for text in (presentation.error_text(error), presentation.answer("check", {"a": [HARD], HARD: url}, error)):
        assert_hidden(text, HARD)
    assert_hidden(redact("".join(traceback.format_exception(error))), HARD)
