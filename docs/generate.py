"""The pages that are made from the code: `make docs` writes them, and tests/unit/test_docs.py finds out when one is stale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cdc.catalogue import CATALOGUE
from cdc.config import Config, LoadConfig, LogConfig, ServerConfig, SinkConfig, SourceConfig, TableRule
from cdc.config_values import Address, Form
from cdc.postgres.grants import source_grants
from cdc.postgres.slot import publish_statement
from cdc.table import TableId
from sinks.postgres.grants import sink_grants

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
    made_by_dba = [*reader, publish_statement("cdc_shop", tables, inserts=False, exists=False)]
    return f"""# Roles for Postgres

Neither role is a superuser. The tests run as these, with exactly these privileges. Below, `shop` is the source's database, `app` the
role that owns its tables, `warehouse` the target's database.

## Source

The server needs `wal_level = logical` and a free replication slot. Run in the source's database, as a superuser or as an administrator
who may create roles with REPLICATION:

{_sql(source)}

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
        _section("log", "a path, or a mapping", LogConfig),
        _section("sinks.<name>", "a URL, or a mapping", SinkConfig),
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
    for item in field.metadata:
        if isinstance(item, Form):
            return item.text
    if field.annotation is bool:
        return "true or false"
    if get_origin(field.annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(field.annotation))
    return "see below"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if _form(field).startswith("bytes"):
        return f"`{value >> 20}MiB`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if isinstance(value, str | int | float | Address) and value != "" else ""


def _sql(statements: list[str]) -> str:
    return "```sql\n" + "".join(f"{statement};\n" for statement in statements) + "```"


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/config.md": configuration,
    "reference/errors.md": errors,
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
