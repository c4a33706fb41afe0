"""An internal error of the server is tried again: it comes of a catalog that changes at the same moment. Damaged data is not."""

from __future__ import annotations

import pytest

from cdc.errors import Unavailable
from cdc.postgres.session import failure


@pytest.mark.parametrize(("sqlstate", "passes"), [("XX000", True), ("XX001", False), ("XX002", False)])
def test_an_internal_error_passes(sqlstate: str, passes: bool) -> None:
    assert isinstance(failure(sqlstate, "streaming", "could not map filenumber to relation OID"), Unavailable) is passes
