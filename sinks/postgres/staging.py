"""Temporary tables of a session that hold a piece's rows before they are merged.

`rows` (whole rows), `gone` (keys), `partial` (rows with gaps, numbered, with the key of the row that fills them). Made once per
table version and emptied by each commit; within one transaction they are emptied before they are used again. They have no
constraints, so that the target alone judges the rows.
"""

from __future__ import annotations

from collections import OrderedDict

from sinks.postgres.plan import Plan
from sinks.postgres.session import Session
from sinks.postgres.sql import ident

_KEPT = 150  # each commit empties all temporary tables of a session, so they are few


class Staging:
    """The temporary tables of one session. `started` and `ended` bracket a transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tables: OrderedDict[tuple[int, str], tuple[Plan, str]] = OrderedDict()
        self._used: set[str] = set()
        self._made: set[tuple[int, str]] = set()
        self._count = 0

    def ended(self, committed: bool) -> None:
        """Forget what a transaction that was rolled back has made."""
        if not committed:
            for key in self._made:
                self._tables.pop(key, None)
        self._made.clear()
        self._used.clear()

    def table(self, plan: Plan, purpose: str) -> str:
        """The quoted name of an empty table for `purpose`: rows, gone, partial or images. Call it outside savepoints."""
        key = (id(plan), purpose)
        if key in self._tables:
            self._tables.move_to_end(key)
            name = self._tables[key][1]
            if name in self._used:
                self._session.execute(f"TRUNCATE {name}")
        else:
            self._make_room()
            self._count += 1
            name = f"pg_temp.{ident(f'{purpose}_{self._count}')}"
            self._make(plan, purpose, name)
            self._tables[key] = (plan, name)
            self._made.add(key)
        self._used.add(name)
        return name

    def _make_room(self) -> None:
        idle = [key for key, (_, name) in self._tables.items() if name not in self._used]
        for key in idle[: max(0, len(self._tables) + 1 - _KEPT)]:
            self._session.execute(f"DROP TABLE {self._tables.pop(key)[1]}")

    def _make(self, plan: Plan, purpose: str, name: str) -> None:
        def typed(column: str, alias: str | None = None) -> str:
            # A domain's checks, NOT NULL among them, are the target's business.
            have = plan.target.columns[column]
            cast = f"::{have.type}" if have.domain else ""
            return f"{ident(column)}{cast} AS {ident(alias or column)}"

        columns = [typed(column) for column in (plan.key if purpose == "gone" else plan.columns)]
        if purpose == "partial":
            columns += [f"NULL::integer AS {ident(plan_number(plan))}"]
            columns += [typed(column, alias) for column, alias in zip(plan.key, origin_names(plan), strict=True)]
        if purpose == "images":
            columns += [f"NULL::integer AS {ident(plan_number(plan))}", f"NULL::integer AS {ident(copies_name(plan))}"]
        self._session.execute(
            f"CREATE TEMPORARY TABLE {name} ON COMMIT DELETE ROWS AS SELECT {', '.join(columns)} FROM {plan.ref} WITH NO DATA"
        )


def _free(plan: Plan, name: str) -> str:
    """A column name that the table does not have."""
    while name in plan.target.columns:
        name += "_"
    return name


def plan_number(plan: Plan) -> str:
    """The column of `partial` and `images` that numbers the rows."""
    return _free(plan, "cdc_n")


def copies_name(plan: Plan) -> str:
    """The column of `images` that says how many such rows go."""
    return _free(plan, "cdc_copies")


def origin_names(plan: Plan) -> tuple[str, ...]:
    """The columns of `partial` that hold the key of the row that fills the gaps."""
    return tuple(_free(plan, f"cdc_from_{index}") for index in range(len(plan.key)))
