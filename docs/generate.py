"""The pages that are made from the code: `make docs` writes them, and tests/unit/test_docs.py finds out when one is stale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from prometheus_client import CollectorRegistry
from psycopg.postgres import types as postgres_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import OptionInfo

from cdc.avro import schemas_of
from cdc.catalogue import CATALOGUE
from cdc.cli import app
from cdc.config import Config
from cdc.config_sections import (
    EvolutionConfig,
    LoadConfig,
    LogConfig,
    RegistryConfig,
    ServerConfig,
    SinkConfig,
    SourceConfig,
    TableRule,
)
from cdc.config_values import Address, Form
from cdc.metrics import CaptureMetrics, SinkMetrics
from cdc.postgres.grants import source_grants
from cdc.postgres.slot import publish_statement
from cdc.postgres.types import BIT_OID, NUMERIC_OID, TIME_OID, TIMESTAMP_OID, PgType, logical
from cdc.table import LOGICAL_KINDS, Column, LogicalType, TableId, TableSchema
from sinks.postgres.grants import sink_grants
from sinks.postgres.types import form_of

FOLDER = Path(__file__).parent


def errors() -> str:
    """Every error code with its explanation and remedy."""
    lines = [
        "# Errors",
        "",
        "What `cdc explain CODE` says. Exit codes: 1 needs an operator, 2 the configuration, 3 a dependency is away, 4 findings.",
    ]
    for code, entry in sorted(CATALOGUE.items()):
        lines += [
            "",
            f"## {code}: {entry.title}",
            "",
            entry.explanation,
            "",
            f"Remedy: {entry.remedy}",
            "",
            f"Exit code {entry.exit_code}.",
        ]
    return "\n".join(lines) + "\n"


def postgres_roles() -> str:
    """The roles for Postgres, with their privileges."""
    source = source_grants("cdc", "…", "shop", ["public"], ["app"])
    reader = source_grants("cdc", "…", "shop", ["public"])
    tables = [TableId("public", "customer"), TableId("public", "orders")]
    single = source_grants("cdc", "…", "shop", [], tables=tables)[2:]
    made_by_dba = [*reader, publish_statement("cdc_shop", tables, inserts=False, exists=False)]
    return f"""# Roles for Postgres

Neither role is a superuser. The tests run as these, with exactly these privileges. Below, `shop` is the source's database, `app` the
role that owns its tables, `warehouse` the target's database. With the names of your own pipeline, and changing nothing:

```sh
cdc check shop.yaml --grants
```

Where the role is let in already, it fills in tables and owners; else `<owner>` and `<password>` stand for what you know.

## Source

The server needs `wal_level = logical` and a free replication slot. Run in the source's database, as a superuser or as an administrator
who may create roles with REPLICATION:

{_sql(source)}

Where `tables:` names single tables, without a star, the role reads those and no others:

{_sql(single)}

Postgres lets nobody but a table's owner add it to a publication: hence the membership in `app`. Without it, make the publication
yourself, list it as `publication:` in the pipeline file, and add new tables to it yourself:

{_sql(made_by_dba)}

## Target

Run in the target's database:

{_sql(sink_grants("etl", "…", "warehouse", ["public"]))}

Where the sink is to add columns to tables that somebody else made, it has to be a member of their owner:

{_sql(sink_grants("etl", "…", "warehouse", [], ["owner"])[-1:])}
"""


def configuration() -> str:
    """Every key of the pipeline file."""
    sections = [
        _section("The file", "", Config),
        _section("source", "a URL, or a mapping", SourceConfig),
        _section("rules.<schema.table>", "a mapping", TableRule),
        _section("log", "a path, `kafka://host:port,host:port`, or a mapping", LogConfig),
        _section("registry", "a URL, or a mapping", RegistryConfig),
        _section("sinks.<name>", "a URL, or a mapping", SinkConfig),
        _section("sinks.<name>.evolution and rules.<schema.table>.evolution", "a mapping", EvolutionConfig),
        _section("load", "a mapping", LoadConfig),
        _section("server", "a mapping", ServerConfig),
    ]
    return CONFIGURATION.format(sections="\n\n".join(sections))


CONFIGURATION = """# The pipeline file

One YAML file describes one pipeline; `cdc init` writes one from a live database. A key that is not known is an error, and all errors
are reported at once, each with its line and column.

```yaml
pipeline: shop
source: postgresql://cdc:${{CDC_PASSWORD}}@db.internal/shop?sslmode=verify-full
tables: ["public.*", "!public.audit_*"]
sinks:
  warehouse: {{url: "${{WAREHOUSE_URL}}", rename: {{"public.(.*)": "shop.\\\\1"}}}}
```

## Variables and secrets

In any value: `${{NAME}}` is the environment variable, which must be set; `${{NAME:-default}}` has a default;
`${{file:/run/secrets/x}}` is
the content of a file, without the line break at its end; a relative path is relative to the pipeline file; `$${{` stands for `${{`.

Inside the user and password of a URL, and in the value of an option after `?`, a variable holds the thing itself, whatever characters
it has: `postgresql://cdc:${{PW}}@db/shop` is right for the password `a@b:/%`. A password that is written out there has to be
percent-encoded where it holds `@`, `/`, `?` or `%`, and so has one in a variable that holds the whole URL.

No password is ever shown: not in log lines, errors, status or tracebacks.

## Table patterns

`schema.table`, where `*` stands for any run of characters. A table is taken when some pattern takes it and none with `!` in front
excludes it, in whatever order. A part that holds a dot, a quote or a star of its own stands in double quotes: `'public."a.b"'`. In
YAML a pattern that begins with `*` or `!` stands in quotes.

{sections}
"""


def _section(title: str, form: str, model: type[BaseModel]) -> str:
    lines = [f"## {title}", "", *([f"{form[0].upper()}{form[1:]}.", ""] if form else [])]
    lines += ["| key | value | default | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        words = " ".join((field.description or "").split())
        lines.append(f"| `{name}` | {_form(field)} | {_default(field)} | {words} |")
    return "\n".join(lines)


def _form(field: FieldInfo) -> str:
    optional = () if get_origin(field.annotation) is dict else get_args(field.annotation)
    inside = [item for kind in optional for item in getattr(kind, "__metadata__", ())]
    for item in (*field.metadata, *inside):
        if isinstance(item, Form):
            return item.text
    if field.annotation is bool:
        return "true or false"
    if field.annotation is str:
        return "text"
    if get_origin(field.annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(field.annotation))
    return "see below"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is not None and _form(field).startswith("bytes"):
        return f"`{value >> 20}MiB`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if isinstance(value, str | int | float | Address) and value != "" else ""


def _sql(statements: list[str]) -> str:
    return "```sql\n" + "".join(f"{statement};\n" for statement in statements) + "```"


def command_line() -> str:
    """Every verb with its arguments and options."""
    commands = {command.name or "": command.callback for command in app.registered_commands}
    verbs = "\n\n".join(_verb(name, callback) for name, callback in commands.items())
    shared = _options(item for item in _parameters(commands["run"]) if item.name in SHARED)
    return COMMAND_LINE.format(shared=shared, verbs=verbs)


SHARED = ("debug", "log_format")
"""Options that every verb has."""

COMMAND_LINE = """# The command line

`cdc VERB …`. Data goes to stdout, everything else to stderr. A pipeline file is named as `FILE`, by `--config`, or by the variable
`CDC_CONFIG`; without any it is `pipeline.yaml` in the working directory.

| exit code | |
|---|---|
| 0 | done; a service was asked to stop, and has stopped at a committed batch |
| 1 | failed, and needs an operator; the error says what to do |
| 2 | the configuration, or the command line itself |
| 3 | a dependency is away. Services do not end by it, they try again |
| 4 | findings: `cdc check` found an error, `cdc status` an unhealthy pipeline, `cdc demo` a difference |
| 130 | interrupted |

`--json` prints one object on stdout, `{{"command", "ok", "result", "error"}}`, whose shape is stable: keys are added, never renamed or
removed. `error` is null, or `{{"code", "title", "detail", "where", "remedy"}}`. (`cdc tail --json` prints one object per event.)

Verbs that change something ask first. `--yes` answers; without it, and without a terminal to ask on, they end with CDC-RUN-302.

Every verb has these options, and `-h`, `--help`:

{shared}

{verbs}
"""


class Given(NamedTuple):
    """One argument or option, as the function of its verb declares it."""

    name: str
    said: Any  # typer's OptionInfo or ArgumentInfo
    of: Any
    default: Any

    @property
    def is_option(self) -> bool:
        return isinstance(self.said, OptionInfo)

    @property
    def placeholder(self) -> str:
        """As in the usage line."""
        shown = self.said.metavar or self.name.upper()
        return shown if self.default is Parameter.empty or shown.startswith("[") else f"[{shown}]"

    @property
    def value(self) -> str:
        """What follows an option."""
        kinds = [kind for kind in (get_args(self.of) or (self.of,)) if kind is not type(None)]
        if bool in kinds:
            return ""
        if isinstance(kinds[0], type) and issubclass(kinds[0], Enum):
            return " or ".join(f"`{choice.value}`" for choice in kinds[0])
        return f"`{self.said.metavar or {int: 'NUMBER', Path: 'PATH'}.get(kinds[0], 'TEXT')}`"

    @property
    def help(self) -> str:
        words = " ".join((self.said.help or "").split())
        shown = self.said.show_default if isinstance(self.said.show_default, str) else self.default
        is_value = isinstance(shown, str | int | Path) and not isinstance(shown, bool)
        return words + (f" Default: `{shown}`." if is_value else "")


def _parameters(callback: Any) -> list[Given]:
    found = signature(callback).parameters.values()
    return [Given(p.name, p.annotation.__metadata__[0], p.annotation.__origin__, p.default) for p in found]


def _verb(name: str, callback: Any) -> str:
    given = _parameters(callback)
    arguments = [item for item in given if not item.is_option]
    options = [item for item in given if item.is_option and item.name not in SHARED]
    usage = " ".join(["cdc", name, *(["[OPTIONS]"] if options else []), *(item.placeholder for item in arguments)])
    lines = [f"## cdc {name}", "", " ".join((callback.__doc__ or "").split()), "", "```", usage, "```"]
    if arguments:
        lines += ["", "| argument | |", "|---|---|"]
        lines += [f"| `{item.placeholder}` | {item.help} |" for item in arguments]
    if options:
        lines += ["", _options(options)]
    return "\n".join(lines)


def _options(options: Iterable[Given]) -> str:
    lines = ["| option | value | |", "|---|---|---|"]
    for item in options:
        # What stands first in `typer.Option(…)` is held for a default until the command is built.
        names = [name for name in (item.said.default, *item.said.param_decls) if str(name).startswith("-")]
        shown = ", ".join(f"`{name}`" for name in sorted(names, key=len))
        lines.append(f"| {shown} | {item.value} | {item.help} |")
    return "\n".join(lines)


def types() -> str:
    """Source type → logical type → Avro → Debezium's name → the target's type."""
    rows = [_type_row(shown, kind) for shown, kind in _postgres_types()]
    kinds = [f"| `{kind}` | {meaning} |" for kind, meaning in LOGICAL_KINDS.items()]
    return TYPES.format(rows="\n".join(rows), kinds="\n".join(kinds))


def _postgres_types() -> Iterator[tuple[str, LogicalType]]:
    """What a Postgres column's type is called, and what it is to us; types without a row of their own come last."""
    names: dict[LogicalType, list[str]] = {}
    for info in sorted(postgres_types, key=lambda info: info.oid):
        kind = logical(PgType(info.oid, -1, "b", info.oid, -1))
        if kind.kind != "other" and info.oid not in (BIT_OID, NUMERIC_OID, TIME_OID, TIMESTAMP_OID):
            names.setdefault(kind, []).append(f"`{info.regtype}`")
    for kind, called in names.items():
        yield ", ".join(called), kind
    for shown, oid, typmod in (
        ("`numeric(p,s)` with 0 ≤ s ≤ p, here `numeric(12,2)`", NUMERIC_OID, (12 << 16 | 2) + 4),
        ("`numeric`, and other scales", NUMERIC_OID, -1),
        ("`time(0)` to `time(3)`", TIME_OID, 3),
        ("`time`, `time(4)` to `time(6)`", TIME_OID, -1),
        ("`timestamp(0)` to `timestamp(3)`", TIMESTAMP_OID, 3),
        ("`timestamp`, `timestamp(4)` to `timestamp(6)`", TIMESTAMP_OID, -1),
        ("`bit(1)`", BIT_OID, 1),
        ("`bit(n)`, here `bit(12)`", BIT_OID, 12),
    ):
        yield shown, logical(PgType(oid, typmod, "b", oid, typmod))
    yield "an enum", logical(PgType(0, -1, "e", 0, -1, ("small", "large")))
    for extension, name in (("citext", "citext"), ("hstore", "hstore"), ("ltree", "ltree")):
        yield f"`{name}` of the extension", logical(PgType(0, -1, "b", 0, -1, extension=f"{extension}.{name}"))
    element = PgType(23, -1, "b", 23, -1)
    yield (
        "an array of any type of this table but the last, here `integer[]`",
        logical(element._replace(oid=1007, base_oid=1007, inner=element)),
    )
    for named in ("vector.vector", "postgis.geometry"):
        extension, _, name = named.partition(".")
        yield f"`{name}` of the extension {extension}", logical(PgType(0, -1, "b", 0, -1, extension=named))
    yield "every other type: ranges, `inet`, `bit varying`, composites, their arrays, …", LogicalType("other")


def _type_row(shown: str, kind: LogicalType) -> str:
    table = TableSchema(TableId("s", "t"), (Column("x", kind, "verbatim"),))
    value = schemas_of("p", table, "postgresql").value
    row = next(field["type"][1] for field in value["fields"] if field["name"] == "before")
    form = row["fields"][0]["type"][1]
    debezium = form.get("connect.name", "") if isinstance(form, dict) else ""
    debezium = f"`{debezium}`" if debezium else form.get("connect.type", "") if isinstance(form, dict) else ""
    return f"| {shown} | `{kind.kind}` | {_avro_shown(form)} | {debezium} | `{form_of(kind)}` |"


def _avro_shown(form: Any) -> str:
    if isinstance(form, list):  # a union with null
        return f"{_avro_shown(form[1])} or null"
    if not isinstance(form, dict):
        return str(form)
    match form["type"]:
        case "array":
            return f"array of {_avro_shown(form['items'])}"
        case "map":
            return f"map of {_avro_shown(form['values'])}"
        case "record":
            return (
                "record {" + ", ".join(f"{item['name']}: {_avro_shown(item['type'])}" for item in form["fields"]) + "}"
            )
    return ", ".join(filter(None, (form["type"], form.get("logicalType"))))


TYPES = """# Types

A column's own type at the source, word for word, is in the schema of every event (`penstock.type`), beside its *logical type*, which is
the hub between engines. A Postgres target makes a column with the source's own type where it knows a type of that name (an enum or
an extension's type that was made there first, too), and else with the type in the last column. A domain counts as the type below it.

| Postgres source | logical | Avro | Debezium's name (`connect.name`) | otherwise at a Postgres target |
|---|---|---|---|---|
{rows}

A value of logical type `other` is the text that the type's output function prints, under settings of our own (`DateStyle ISO`,
`TimeZone UTC`, `IntervalStyle postgres`, `extra_float_digits 3`, `bytea_output hex`, `lc_monetary C`): no less exact, and it reads back
as the same value. Types of extensions are known by name and extension. PostGIS' `geometry` is its EWKB in hexadecimal digits,
pgvector's `vector` is `[1,2.5]`.

A column of a few types puts the whole replication stream into text mode, which is slower and no less exact: composites, names of
objects (`regclass` and its like), `tsquery`, `int2vector`, types of extensions but for those above and `lquery`, and arrays, ranges and
domains of these.

Arrays of any dimension, with NULLs and any lower bounds, are lists; what a list cannot say stands in the envelope's `shapes`. Arrays
whose elements are `other` are text as a whole. So is, in the record key, an array, a point or an hstore, which Connect has no key for.

An interval has all its parts, each with a sign: `P1Y2M-3DT4H5M6.789S`, zero is `P0Y0M0DT0H0M0S`. A time with zone keeps its offset:
`12:34:56.700000+05:45`. `bit(n)` is one number, its last bit the lowest, in little-endian bytes.

A column of the key is never null, so its field is the type alone; every other field is a union of null and the type, with default null.
Special values, and values that were not sent, are in [events.md](events.md). Which type at a target may hold which is in
[sinks.md](../explanation/sinks.md).

## Logical types

| logical | holds |
|---|---|
{kinds}
"""


def metrics() -> str:
    """Every metric of a service."""
    capture, sink = CaptureMetrics("shop").registry, SinkMetrics("shop", "warehouse").registry
    both = set(_metrics(capture)) & set(_metrics(sink))
    sections = [
        _metric_table("Every service", both),
        _metric_table("A capture", set(_metrics(capture)) - both),
        _metric_table("A sink", set(_metrics(sink)) - both),
    ]
    return METRICS.format(sections="\n\n".join(sections))


METRICS = """# Metrics

`/metrics` of each service, in Prometheus' text form: seconds, bytes, Unix time, the prefix `cdc_`. A value that is not known just now
is NaN, not 0. What a service measures about its surroundings (lag, sizes, what the source keeps) it measures every ten seconds, on a
connection of its own. The `table` label is `*` for tables beyond the first 500. A metric with labels appears with its first value. What
to alert on: [monitor](../how-to/monitor.md).

{sections}
"""


def _metrics(registry: CollectorRegistry) -> Iterator[tuple[str, str, str, str]]:
    """(name, labels, kind, meaning), as they are scraped."""
    for collector in dict.fromkeys(registry._names_to_collectors.values()):
        made: Any = collector
        kind, name = made._type, made._name
        shown = f"{name}_total" if kind == "counter" else name
        yield shown, ", ".join(f"`{label}`" for label in made._labelnames), kind, made._documentation


def _metric_table(title: str, rows: set[tuple[str, str, str, str]]) -> str:
    lines = [f"## {title}", "", "| metric | labels | kind | |", "|---|---|---|---|"]
    return "\n".join(
        lines + [f"| `{name}` | {labels} | {kind} | {words} |" for name, labels, kind, words in sorted(rows)]
    )


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/cli.md": command_line,
    "reference/config.md": configuration,
    "reference/errors.md": errors,
    "reference/metrics.md": metrics,
    "reference/types.md": types,
    "how-to/postgres-roles.md": postgres_roles,
}
"""Path below docs/ → what makes its text."""


def main() -> None:
    """Write all pages."""
    for path, make in PAGES.items():
        place = FOLDER / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
