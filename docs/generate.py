"""The pages that are made from the code: `make docs` writes them, and tests/unit/test_docs.py finds out when one is stale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cdc.catalogue import CATALOGUE
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


def _sql(statements: list[str]) -> str:
    return "```sql\n" + "".join(f"{statement};\n" for statement in statements) + "```"


PAGES: Mapping[str, Callable[[], str]] = {
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
