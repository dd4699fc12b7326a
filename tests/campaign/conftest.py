"""The campaign of a test run: two minutes in all by default, an hour with `make campaign`."""

from pathlib import Path

import pytest
from campaigns import Campaign, table


@pytest.fixture(scope="session")
def campaign(request):
    option = request.config.getoption
    folder = option("--campaign-folder")
    yield Campaign(
        seed=option("--campaign-seed"),
        seconds=option("--campaign-seconds"),
        case=option("--campaign-case"),
        folder=Path(folder) if folder else None,
    )
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "table.md").write_text(table(folder))
