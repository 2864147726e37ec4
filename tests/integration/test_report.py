"""A browser shows a report without a complaint."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import browser
from tests.reports import rendered


@pytest.mark.parametrize(("width", "dark"), [(1180, False), (1180, True), (420, False)])
def test_a_browser_shows_the_report_without_errors(tmp_path: Path, width: int, dark: bool) -> None:
    path = tmp_path / "report.html"
    path.write_text(rendered(["shirt", "a class with quite a long name", "bag"], shape=(28, 28, 1)))
    with browser.chromium(width, dark=dark) as driver:
        driver.get(path.as_uri())
        browser.shoot(driver, f"report-{width}{'-dark' if dark else ''}")
        assert browser.complaints(driver) == []
        assert {url for url in browser.requested(driver) if not url.startswith("data:")} == {path.as_uri()}
        assert not browser.overflowing(driver)
        ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(18, 22, 28)" if dark else "rgb(246, 247, 249)")
