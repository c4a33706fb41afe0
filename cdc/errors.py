"""Errors with a code, a place and a remedy.

    CdcError                 a stop that needs an operator (exit code from the catalogue)
    ├─ Unavailable           a dependency is away: the supervisor retries, from the bookmark (exit 3 when it gives up)
    ├─ Superseded            a successor that the log or the bookmark names has taken over: final, never retried
    └─ Rejected              a target refuses one row; the sink names it by key and stops

Every code is in `cdc.catalogue` with a title, an explanation and a default remedy; `cdc explain CODE` prints it.
Messages carry key values only, never other row values or credentials (rule R10). Driver exceptions become these in the
module that owns the driver, by SQLSTATE or errno, never by message text.
"""

from __future__ import annotations

from dataclasses import dataclass

EXIT_OK, EXIT_FAILED, EXIT_CONFIG, EXIT_UNAVAILABLE, EXIT_FINDINGS = 0, 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One catalogue entry: what `cdc explain` prints and how a process ends."""

    title: str
    explanation: str
    remedy: str
    exit_code: int = EXIT_FAILED


class CdcError(Exception):
    """A coded error: `code` is in the catalogue, `detail` says what happened here, `where` names file:line, table or position.

    `remedy` replaces the catalogue's when the exact statement is known at the place that raises.
    """

    def __init__(self, code: str, detail: str, *, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(detail)
        self.code, self.detail, self.where = code, detail, where
        self.remedy = remedy if remedy is not None else entry(code).remedy

    @property
    def exit_code(self) -> int:
        return entry(self.code).exit_code

    def __str__(self) -> str:
        place = f" [{self.where}]" if self.where else ""
        return f"{self.code} {entry(self.code).title}: {self.detail}{place}"

    def to_json(self) -> dict[str, str | None]:
        """The `error` member of every `--json` answer; a stable contract."""
        title = entry(self.code).title
        return {
            "code": self.code,
            "title": title,
            "detail": self.detail,
            "where": self.where,
            "remedy": self.remedy,
        }


class Unavailable(CdcError):
    """A dependency is away or busy; trying again from the bookmark can help."""

    @property
    def exit_code(self) -> int:
        return EXIT_UNAVAILABLE


class Superseded(CdcError):
    """A successor stands in the log or in the bookmark; this process ends and is never retried."""


class Rejected(CdcError):
    """The target refuses a row that the source holds; `sqlstate` is the target's own code for it, where it has one."""

    def __init__(self, code: str, detail: str, *, where: str | None = None, sqlstate: str | None = None) -> None:
        super().__init__(code, detail, where=where)
        self.sqlstate = sqlstate


def entry(code: str) -> Entry:
    """The catalogue's entry; an unknown code is a bug of ours, and says so rather than hiding the error."""
    from cdc.catalogue import CATALOGUE

    return CATALOGUE.get(code) or Entry("unlisted error", "This code has no page; please report it.", "report this")
