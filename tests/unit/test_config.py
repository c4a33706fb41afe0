"""The pipeline file: what it may say, and that every mistake in it is found, at its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import psycopg2.extensions
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cdc import secrets
from cdc.config import Config, load
from cdc.config_file import ConfigErrors
from cdc.errors import EXIT_CONFIG, CdcError
from cdc.selection import Rename, TableFilter
from cdc.table import TableId

MINIMAL = "pipeline: shop\nsource: postgresql://cdc@db/shop\n"
Loader = Callable[..., Config]


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test registers is hidden from no other."""
    monkeypatch.setattr(secrets, "_registered", set())
    monkeypatch.setattr(secrets, "_pattern", None)


@pytest.fixture
def loaded(tmp_path: Path) -> Loader:
    def from_text(text: str, environ: Mapping[str, str] | None = None) -> Config:
        path = tmp_path / "shop.yaml"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return load(path, environ or {})

    return from_text


def problems(loaded: Loader, text: str, environ: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """(line:column, message) of each mistake."""
    with pytest.raises(ConfigErrors) as caught:
        loaded(text, environ)
    assert caught.value.exit_code == EXIT_CONFIG
    return [(problem.where.split("shop.yaml:")[-1], problem.message) for problem in caught.value.problems]


def test_the_readmes_example(loaded: Loader, tmp_path: Path) -> None:
    config = loaded(
        'pipeline: shop\nsource: postgresql://cdc@db.internal/shop\ntables: [public.*, "!public.audit_*"]\n'
        'sinks:\n  warehouse: {url: postgresql://etl@dw/analytics, rename: {"public.(.*)": "shop.\\\\1"}}\n'
        "  second: postgresql://etl@dw2/analytics\n"
    )
    assert config.tables.matches(TableId("public", "orders"))
    assert not config.tables.matches(TableId("public", "audit_2026"))
    assert config.sinks["warehouse"].rename.target(TableId("public", "orders")) == TableId("shop", "orders")
    assert config.sink("second").url.hosts == "dw2"
    assert (config.source.slot, config.source.publication) == ("cdc_shop", "cdc_shop")
    assert config.log.path == tmp_path / "penstock/shop.log"
    assert (config.log.retention, str(config.server.bind)) == ("forever", "127.0.0.1:8484")
    assert config.path == tmp_path / "shop.yaml"
    assert config.findings == ()


def test_mappings_sizes_and_relative_paths(loaded: Loader, tmp_path: Path) -> None:
    config = loaded(
        "pipeline: a-b\nsource: {url: postgresql://db/shop, slot: mine, heartbeat_s: 2.5, messages: [outbox, 'app.*']}\n"
        "rules: {public.log: {insert_only: true}}\nlog: {path: here, segment_bytes: 64MiB, retention: applied}\n"
        "load: {rows_max: 1000, bytes_max: 2 MB}\nserver: {bind: '[::1]:0'}\n"
    )
    assert (config.source.slot, config.source.publication, config.source.heartbeat_s) == ("mine", "cdc_a_b", 2.5)
    assert config.source.messages == ("outbox", "app.*")
    assert config.rules[TableId("public", "log")].insert_only
    assert (config.log.path, config.log.segment_bytes) == (tmp_path / "here", 64 << 20)
    assert (config.load.rows_max, config.load.bytes_max) == (1000, 2_000_000)
    assert (config.server.bind.host, config.server.bind.port) == ("::1", 0)
    assert loaded(MINIMAL + "log: /var/lib/x.log\n").log.path == Path("/var/lib/x.log")


def test_what_a_sink_does_at_changes_is_the_tables_rule_before_the_sinks(loaded: Loader) -> None:
    config = loaded(
        """
        pipeline: shop
        source: postgresql://cdc@db/shop
        rules: {public.orders: {evolution: {dropped: keep, added: stop}}}
        sinks:
          one: {url: postgresql://a/one, evolution: {dropped: drop, retyped: stop}}
          two: postgresql://a/two
        """
    )
    usual = {"added": "add", "dropped": "keep", "retyped": "widen", "rekeyed": "follow"}
    orders, other = TableId("public", "orders"), TableId("public", "other")
    assert config.evolution("one", orders) == usual | {"added": "stop", "retyped": "stop"}
    assert config.evolution("one", other) == usual | {"dropped": "drop", "retyped": "stop"}
    assert config.evolution("two", orders) == usual | {"added": "stop"}
    assert config.evolution("two", other) == usual


def test_nothing_changes_after_loading(loaded: Loader) -> None:
    with pytest.raises(ValidationError):
        loaded(MINIMAL).pipeline = "other"  # type: ignore[misc]


def test_all_mistakes_at_once_each_at_its_place(loaded: Loader) -> None:
    found = problems(
        loaded,
        "pipeline: Shop!\n"
        "sourc: postgresql://cdc@db/shop\n"
        'tables: ["public.*", orders, 3, !public.a_* ]\n'
        "pipeline: again\n"
        "rules: {orders: {insert_onl: yes}}\n"
        "log: {segment_bytes: lots, retention: for}\n"
        "load: {rows_max: 0}\n"
        "server: {bind: 8484}\n"
        "sinks:\n"
        '  a: {url: "kafka://h/d", rename: {"public.(.*)": "shop.\\\\2", "(": x}}\n'
        "  B b: ${UNSET}\n"
        "  c: {urls: x}\n"
        "  d: postgresq://h/d\n"
        "  e: [1]\n",
    )
    expected = [
        ("1:1", 'the key "source" is missing'),
        ("1:11", "1 to 40 of the characters"),
        ("2:1", 'unknown key "sourc"; did you mean "source"?'),
        ("3:22", "not a table pattern"),
        ("3:30", "must be text"),
        ("3:33", 'stands in quotes: "!public.a_*"'),
        ("4:1", 'the key "pipeline" stands here again (first in line 1)'),
        ("5:9", "schema.table"),
        ("5:18", 'unknown key "insert_onl"; did you mean "insert_only"?'),
        ("6:22", "log.segment_bytes: must be a whole number"),
        ("6:39", "log.retention: must be 'forever' or 'applied'"),
        ("7:18", "must be more than 0"),
        ("8:16", 'must be "host:port"'),
        ("10:12", "kafka:// can be the log, not a database"),
        ("10:36", "does not fit"),
        ("10:63", "not a regular expression"),
        ("11:3", "1 to 40 of the characters"),
        ("11:8", "the environment variable UNSET is not set"),
        ("12:6", 'the key "url" is missing in "sinks.c"'),
        ("12:7", 'unknown key "urls"; did you mean "url"?'),
        ("13:6", 'did you mean "postgresql"?'),
        ("14:6", "must be a mapping"),
    ]
    assert [place for place, _ in found] == [place for place, _ in expected]
    for (_, message), (_, part) in zip(found, expected, strict=True):
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "1:1: the file is empty"),
        ("- a\n", "1:1: the file: must be a mapping"),
        (MINIMAL + "sinks: {a: mysql://h/d}", "3:12: sinks.a: mysql:// is not in this version"),
        (MINIMAL + "sinks: {a: mongodb://h/d}", "mongodb:// is not in this version"),
        (MINIMAL + "sinks: {a: h/d}", "not a URL"),
        (MINIMAL + "log: mysql://b:9092", "3:6: log: mysql:// is not in this version"),
        (MINIMAL + "log: kafka://b", "3:6: log: the brokers are host:port"),
        (MINIMAL + "log: kafka://u:pw@b:9092", "3:6: log: credentials do not belong in this URL"),
        (MINIMAL + "log: {url: postgresql://b:9092}", "3:12: log.url: must be a URL such as kafka://"),
        (MINIMAL + "log: {url: 'kafka://b:1', path: x}", "3:27: a Kafka log has no such option"),
        (MINIMAL + "log: {partitions: 2}", "3:7: only a Kafka log has this option"),
        (MINIMAL + "rules: {public.a: {topic: x}}", "3:20: only a Kafka log has topics"),
        (
            MINIMAL + "log: kafka://b:1\nrules: {public.a: {topic: x}, public.b: {topic: x}}",
            "4:42: it is the topic of public.a already",
        ),
        (MINIMAL + "log: kafka://b:1\nrules: {public.a: {topic: shop.signals}}", "the pipeline has a topic of that name"),
        (MINIMAL + "rules: {public.a: {topic: 'a b'}}", "a topic's name is"),
        (MINIMAL + "registry: ftp://x", "registry: must be a URL such as https://"),
        (MINIMAL + "rules: {a.b: {evolution: {dropped: lose}}}", "must be 'keep', 'drop' or 'stop'"),
        (MINIMAL + "sinks: {a: {url: postgresql://a/b, evolution: {drop: keep}}}", 'unknown key "drop"; did you mean'),
        (MINIMAL + "tabels: []", '3:1: unknown key "tabels"; did you mean "tables"?'),
        (MINIMAL + "zzz: []", "the keys here are pipeline, source"),
        (MINIMAL + "a: &x [*x]", "3:4: a value cannot contain itself"),
        (MINIMAL + "sinks: {a: postgresql://DB:5432/shop}", "would write the source's own tables"),
        (MINIMAL + "sinks: {a: postgresql://k/d, b: postgresql://x:y@k:5432/d}", '"a" and "b" would write the same'),
        (MINIMAL + "tables: [a.*]\nrules: {b.c: {}}", "4:9: a rule for b.c, which `tables` does not take"),
        ("pipeline: 12\nsource: postgresql://db/d", "1:11: pipeline: must be text; put it in quotes"),
        (MINIMAL + "load: {rows_max: 1.5}", "must be a whole number"),
        (MINIMAL + "rules: {a.b: {insert_only: 7}}", "must be true or false"),
        ("pipeline: a\nsource: {url: postgresql://h/d, messages: [penstock.x]}", "2:44: source.messages: prefixes that begin"),
        ("pipeline: a\nsource: {url: postgresql://h/d, messages: ['']}", "source.messages: must be a prefix"),
        ("pipeline: x\nsource: {url: postgresql://db/d, slot: Bad}", "2:40: source.slot: a slot's name is"),
    ],
)  # fmt: skip
def test_one_mistake(loaded: Loader, text: str, part: str) -> None:
    assert part in "\n".join(f"{place}: {message}" for place, message in problems(loaded, text))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [\n", "shop.yaml:3:1"),
        ("tables: [*.*]\n", "stands in quotes"),
        ("t: [!a.b]\nx: y\n", "begins with ! stands in quotes"),
        ("a: b: c\n", "shop.yaml:1:5"),
        ("\tb: 1\n", ":1:1"),
    ],
)
def test_what_is_not_yaml_is_named_with_its_place_and_never_quoted(loaded: Loader, text: str, part: str) -> None:
    with pytest.raises(CdcError) as caught:
        loaded(f"{text}# s3cr3t-canary\n")
    assert caught.value.code == "CDC-CFG-102"
    assert part in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(CdcError) as caught:
            load(path, {})
        assert caught.value.code == "CDC-CFG-101"
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(CdcError, match="UTF-8"):
        load(tmp_path / "latin.yaml", {})


# Variables


def test_variables(loaded: Loader, tmp_path: Path) -> None:
    (tmp_path / "slot").write_text("from_file\n")
    config = loaded(
        'pipeline: ${NAME}\nsource:\n  url: "postgresql://${USER:-cdc}@${HOST}:${PORT}/d?sslmode=${MODE:-require}"\n'
        "  slot: ${file:slot}\n  publication: $${HOST}\nload: {rows_max: '${ROWS}'}\n",
        {"NAME": "shop", "HOST": "db", "PORT": "5433", "ROWS": "7", "USER": ""},
    )
    assert config.pipeline == "shop"
    assert config.source.url.reveal() == "postgresql://cdc@db:5433/d?sslmode=require"
    assert (config.source.slot, config.source.publication, config.load.rows_max) == ("from_file", "${HOST}", 7)


@pytest.mark.parametrize(
    ("value", "place", "part"),
    [
        ("x${UNSET}", "1:12", "UNSET is not set"),
        ('"x${UNSET}"', "1:13", "UNSET is not set"),
        ("${file:/no/such}", "1:11", "/no/such cannot be read"),
        ("${a b}", "1:11", "is not ${NAME}"),
        ("x${UNCLOSED", "1:12", "not closed"),
    ],
)
def test_a_variable_that_cannot_be_resolved(loaded: Loader, value: str, place: str, part: str) -> None:
    ((found, message),) = problems(loaded, f"pipeline: {value}\nsource: postgresql://db/d\n")
    assert found == place
    assert part in message


def test_a_value_cannot_change_the_files_structure(loaded: Loader) -> None:
    hostile = "x\nsinks:\n  evil: postgresql://evil/d"
    ((place, message),) = problems(loaded, "pipeline: ${NAME}\nsource: postgresql://db/d\n", {"NAME": hostile})
    assert place == "1:11"
    assert "a name is" in message


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r"), min_size=1))
def test_a_variable_in_credentials_holds_the_password_itself(password: str) -> None:
    for given_url in ("postgresql://cdc:${PW}@db/shop?sslmode=require", "postgresql://db/shop?user=cdc&password=${PW}"):
        config = Config.from_data({"pipeline": "shop", "source": given_url}, "test", {"PW": password})
        assert config.source.url.password == password
        assert psycopg2.extensions.parse_dsn(config.source.url.reveal())["password"] == password
        assert (config.source.url.hosts, config.source.url.database) == ("db", "shop")


def test_no_message_and_no_dump_shows_a_secret(loaded: Loader, tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("file-canary-1\n")
    (tmp_path / "pw").chmod(0o600)
    text = "pipeline: shop\nsource: postgresql://a:${file:pw}@db/d\nsinks: {x: 'postgresql://b:${PW}@h/d'}\n"
    config = loaded(text, {"PW": "env-canary-2"})
    for shown in (repr(config), str(config), config.model_dump_json(), str(config.model_dump())):
        assert "canary" not in shown
    broken = text + "rules: {a: {b: '${file:pw}'}}\nserver: {bind: '${PW}'}\n" + "load: ${PW}\n"
    assert "canary" not in str(problems(loaded, broken, {"PW": "env-canary-2"}))


def test_readable_secrets_are_findings(loaded: Loader, tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("file-canary-3")
    (tmp_path / "pw").chmod(0o644)
    (finding,) = loaded("pipeline: shop\nsource: postgresql://a:${file:pw}@db/d\n").findings
    assert (finding.severity, finding.code) == ("warning", "CDC-CFG-104")
    assert finding.where.endswith("shop.yaml:2:24")
    path = tmp_path / "open.yaml"
    path.write_text("pipeline: shop\nsource: postgresql://a:literal-canary@db/d\n")
    path.chmod(0o644)
    (finding,) = load(path, {}).findings
    assert finding.code == "CDC-CFG-105"
    assert "canary" not in str(finding)


# Without a file


def test_a_copy_names_itself_after_its_databases(tmp_path: Path) -> None:
    environ = {"PW": "a@b"}
    config = Config.for_copy("postgres://u:${PW}@h/Shop-1", "postgresql://k/x", folder=tmp_path, environ=environ)
    again = Config.for_copy("postgresql://other@h:5432/Shop-1", "postgres://k/x", folder=tmp_path, environ={})
    other = Config.for_copy("postgresql://h/Shop-1", "postgresql://k/y", folder=tmp_path, environ={})
    assert config.pipeline == again.pipeline != other.pipeline
    assert config.pipeline.startswith("copy_shop_1_")
    assert config.log.path == tmp_path / f"{config.pipeline}.log"
    assert config.log.retention == "applied"
    assert config.source.url.password == "a@b"
    assert list(config.sinks) == ["target"]
    named = Config.for_copy("postgresql://h/a", "postgresql://h/b", "mine", ["public.*"], tmp_path, {})
    assert (named.pipeline, str(named.tables)) == ("mine", "public.*")


def test_a_copys_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        Config.for_copy("mysql://h/a", "postgresql://${NO}/b", tables=["bad"], environ={})
    messages = " ".join(problem.message for problem in caught.value.problems)
    for part in ("mysql:// is not in this version", "NO is not set", "not a table pattern"):
        assert part in messages


def test_an_unknown_sink(loaded: Loader) -> None:
    config = loaded(MINIMAL + "sinks: {warehouse: postgresql://k/d}")
    with pytest.raises(CdcError, match=r"did you mean .warehouse"):
        config.sink("warehose")


# Patterns and names


@pytest.mark.parametrize(
    ("patterns", "taken", "left"),
    [
        ([], ["public.a", 'x."Y z"'], []),
        (["public.*"], ["public.a", 'public."a.b"'], ["publicx.a", "x.public"]),
        (["!public.audit_*"], ["public.orders", "s.audit_1"], ["public.audit_1"]),
        (["!public.a*", "public.*"], ["public.b"], ["public.ab"]),
        (["*.orders", "a*.b*c"], ["x.orders", "ab.bxc"], ["x.order", "b.bc"]),
        (['public."a*"'], ['public."a*"'], ["public.ab"]),
        (['"S.1"."it""s"'], ['"S.1"."it""s"'], ['"S.1".its']),
        (["public.Orders"], ['public."Orders"'], ["public.orders"]),
    ],
)
def test_patterns(patterns: list[str], taken: list[str], left: list[str]) -> None:
    tables = TableFilter.parse(patterns)
    assert [table for table in taken + left if tables.matches(TableId.parse(table))] == taken


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=2))
def test_the_written_name_of_any_table_is_a_pattern_for_it_alone(parts: list[str]) -> None:
    table = TableId(*parts)
    tables = TableFilter.parse([str(table)])
    assert tables.matches(table)
    assert not tables.matches(TableId(table.schema, table.name + "x"))


@pytest.mark.parametrize("text", ["orders", "a.b.c", "", "!", "a b.c", '"a.b', ".a", "a."])
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match="not a table pattern"):
        TableFilter.parse([text])


def test_patterns_that_match_nothing_are_found() -> None:
    tables = TableFilter.parse(["public.*", "public.ordres", "!x.*"])
    assert tables.unmatched([TableId("public", "orders")]) == ["public.ordres"]


def test_the_first_rule_that_matches_the_whole_name_renames() -> None:
    rename = Rename.parse({r"public\.order": "a.never", r"public\.(o.*)": r"b.\1_x", r"public\.(.*)": r"c.\g<1>"})
    assert rename.target(TableId("public", "orders")) == TableId("b", "orders_x")
    assert rename.target(TableId("public", "items")) == TableId("c", "items")
    assert rename.target(TableId("other", "items")) == TableId("other", "items")


@given(st.text(min_size=1).filter(lambda name: "\n" not in name))
def test_a_rule_carries_any_name_over(name: str) -> None:
    assert Rename.parse({r"public\.(.*)": r"shop.\1"}).target(TableId("public", name)) == TableId("shop", name)


def test_renames_that_go_wrong() -> None:
    with pytest.raises(CdcError) as caught:
        Rename.parse({".*": "nodot"}).target(TableId("a", "b"))
    assert caught.value.code == "CDC-CFG-106"
    with pytest.raises(CdcError) as caught:
        Rename.parse({".*": "a.b"}).targets([TableId("a", "x"), TableId("a", "y")])
    assert caught.value.code == "CDC-CFG-107"
    for rules in ({"(": "a.b"}, {"a": r"b.\1"}, {"(?P<n>a)": r"\g<m>.x"}):
        with pytest.raises(ValueError, match=r"regular expression|does not fit"):
            Rename.parse(rules)


def test_a_kafka_log(loaded: Loader) -> None:
    config = loaded(
        MINIMAL + "log:\n  url: kafka://b1:9092,[::1]:9093/\n  partitions: 4\n"
        "  options: {sasl.username: me, sasl.password: hush-hush-77, socket.keepalive.enable: true, retries: 5}\n"
        "rules: {public.a: {topic: shop.first}}\n"
        "registry: {url: 'https://registry:8081', options: {basic.auth.user.info: 'me:hush-hush-78'}}\n"
    )
    assert (config.log.url, config.log.where) == ("b1:9092,[::1]:9093", "kafka://b1:9092,[::1]:9093")
    assert config.log.options["socket.keepalive.enable"] == "true"
    assert config.log.options["retries"] == "5"
    assert config.rules[TableId("public", "a")].topic == "shop.first"
    assert config.registry is not None
    assert secrets.redact("hush-hush-77 me:hush-hush-78") == "*** ***"
