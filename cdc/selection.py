"""Which tables, and under which names: `TableFilter` and `Rename`, pure functions of a `TableId`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cdc.errors import CdcError
from cdc.table import TableId

_PART = r'"(?:[^"]|"")+"|[^".\s]+'
_PATTERN = re.compile(rf"(?P<exclude>!?)(?P<schema>{_PART})\.(?P<name>{_PART})\Z")


class Pattern(NamedTuple):
    """`schema.name` with `*` for any run of characters; a part in double quotes is taken literally; `!` in front excludes."""

    text: str
    exclude: bool
    schema: re.Pattern[str]
    name: re.Pattern[str]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Raises ValueError, in words for the user, when `text` is not a pattern."""
        found = _PATTERN.match(text)
        if found is None:
            raise ValueError(f"{text!r} is not a table pattern: write schema.table, schema.* or !schema.prefix_*")
        return cls(text, bool(found["exclude"]), _part(found["schema"]), _part(found["name"]))

    @property
    def table(self) -> TableId | None:
        """The one table that it names, None when it stands for any number of them."""
        found = _PATTERN.match(self.text)
        assert found is not None
        if any("*" in part and not part.startswith('"') for part in (found["schema"], found["name"])):
            return None
        return TableId.parse(self.text.removeprefix("!"))

    def matches(self, table: TableId) -> bool:
        return bool(self.schema.fullmatch(table.schema) and self.name.fullmatch(table.name))


def _part(text: str) -> re.Pattern[str]:
    if text.startswith('"'):
        return re.compile(re.escape(text[1:-1].replace('""', '"')), re.DOTALL)
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)


@dataclass(frozen=True)
class TableFilter:
    """Takes a table that some pattern includes and none excludes, in whatever order; without an including pattern, all others.
    What is no table (see `TableId`) is never taken."""

    patterns: tuple[Pattern, ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> TableFilter:
        return cls(tuple(map(Pattern.parse, texts)))

    def matches(self, table: TableId) -> bool:
        includes = [pattern for pattern in self.patterns if not pattern.exclude]
        return (
            bool(table.schema)
            and not any(pattern.exclude and pattern.matches(table) for pattern in self.patterns)
            and (not includes or any(pattern.matches(table) for pattern in includes))
        )

    def unmatched(self, tables: Iterable[TableId]) -> list[str]:
        """The including patterns that none of these tables matches: most likely misspelt."""
        tables = list(tables)
        return [
            pattern.text
            for pattern in self.patterns
            if not pattern.exclude and not any(pattern.matches(table) for table in tables)
        ]

    def __str__(self) -> str:
        return ", ".join(pattern.text for pattern in self.patterns) or "all tables"


@dataclass(frozen=True)
class Rename:
    """Ordered rules, regular expression → replacement. The first that matches the whole `schema.table` names the target table.

    The text matched is `str(TableId)`, in which a part that is not a plain lower-case name stands in double quotes.
    """

    rules: tuple[tuple[str, str], ...] = ()
    _compiled: tuple[tuple[re.Pattern[str], str], ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", tuple((re.compile(pattern), to) for pattern, to in self.rules))

    @classmethod
    def parse(cls, rules: Mapping[str, str]) -> Rename:
        """Raises ValueError, in words for the user, on a bad expression or a replacement that names a missing group."""
        for pattern, replacement in rules.items():
            try:
                # An expression with an empty alternative matches nothing at all, which is enough to try the replacement.
                empty = re.compile(f"{pattern}|").fullmatch("")
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
            try:
                if empty is not None:
                    empty.expand(replacement)
            except (re.error, IndexError) as error:
                raise ValueError(f"the replacement {replacement!r} does not fit {pattern!r}: {error}") from error
        return cls(tuple(rules.items()))

    def target(self, table: TableId) -> TableId:
        """The table's name at the target. Raises CDC-CFG-106 when a rule makes something that is not schema.table of it."""
        source = str(table)
        for pattern, replacement in self._compiled:
            if found := pattern.fullmatch(source):
                renamed = found.expand(replacement)
                try:
                    target = TableId.parse(renamed)
                except ValueError:
                    target = TableId("", "")
                if not target.schema:
                    detail = f"{pattern.pattern!r}: {replacement!r} makes {renamed!r} of {source}"
                    raise CdcError("CDC-CFG-106", detail, where=source)
                return target
        return table

    def targets(self, tables: Iterable[TableId]) -> dict[TableId, TableId]:
        """The target of each table. Raises CDC-CFG-107 when two tables would be written to one."""
        targets: dict[TableId, TableId] = {}
        taken: dict[TableId, TableId] = {}
        for table in tables:
            target = targets[table] = self.target(table)
            if target in taken:
                raise CdcError(
                    "CDC-CFG-107", f"{taken[target]} and {table} would both be written to {target}", where=str(table)
                )
            taken[target] = table
        return targets
