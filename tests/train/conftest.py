"""What tests of trainings share."""

import pytest

from ft.train import offloading


@pytest.fixture
def fetched(monkeypatch) -> list:
    """Sizes of what came back from the processor's memory."""
    found: list = []
    fetch = offloading._Kept.fetch

    def watched(self):
        found.append(self.like[0])
        return fetch(self)

    monkeypatch.setattr(offloading._Kept, "fetch", watched)
    return found
