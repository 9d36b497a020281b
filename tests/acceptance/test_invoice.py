"""Every account agrees with the providers' invoices, for a mixed load over all lanes.

`make bench-invoice` does the same with 5,000 requests.
"""

from __future__ import annotations

from pathlib import Path

from tests.bench.invoice import accounts


def test_receipts_budgets_and_report_are_the_invoices_to_the_nano_dollar(tmp_path: Path) -> None:
    account = accounts(tmp_path, count=300, seed=1)
    assert account.problems() == [], str(account)
    assert account.answered.keys() == {"realtime", "local", "batch"}
    assert account.refused_attempts > 0
