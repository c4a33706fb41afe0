"""An internal error of the server passes while a slot is made or a change decoded, and at no other place."""

from __future__ import annotations

import pytest

from cdc.errors import CdcError, Unavailable
from cdc.postgres import slot, stream
from cdc.postgres.session import failure


class Refusing:
    """A session in which every statement fails with this SQLSTATE."""

    def __init__(self, sqlstate: str) -> None:
        self._error = failure(sqlstate, "streaming", "could not map filenumber to relation OID")

    idle = None

    def settings(self, _values: object) -> None:
        pass

    def run(self, *_: object, **__: object) -> None:
        raise self._error

    def raise_pending(self, _doing: str) -> None:
        raise self._error


@pytest.mark.parametrize(("sqlstate", "passes"), [("XX000", True), ("XX001", False), ("XX002", False)])
def test_an_internal_error_passes(sqlstate: str, passes: bool) -> None:
    refusing = Refusing(sqlstate)
    streaming = object.__new__(stream.Stream)
    streaming.session = refusing  # type: ignore[assignment]
    for attempt in (lambda: slot.create(refusing, refusing, "s"), streaming.ended):  # type: ignore[arg-type]
        with pytest.raises(CdcError) as stopped:
            attempt()
        assert isinstance(stopped.value, Unavailable) is passes
    assert not isinstance(failure(sqlstate, "reading", "internal"), Unavailable)
