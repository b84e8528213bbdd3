"""Do the tests notice?  The minds are broken on purpose, one line at a time; a story must differ, or a world must fail."""

from __future__ import annotations

import pytest

from tests.broker.fault_list import FAULTS
from tests.broker.faults import broken, differing_story, failing_seed


@pytest.mark.parametrize("fault", FAULTS)
def test_somebody_notices(fault: str) -> None:
    minds = broken(*FAULTS[fault])
    assert differing_story(minds) or failing_seed(minds) is not None, f"nobody notices that {fault}"


def test_the_minds_unbroken_are_noticed_by_nobody() -> None:
    """The way of breaking them breaks nothing by itself."""
    minds = broken("ledger", "class Ledger:", "class Ledger:  # the same")
    assert not differing_story(minds)
    assert failing_seed(minds, 5) is None
