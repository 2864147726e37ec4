"""A real headless Chromium, or one sentence about what is missing."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SHOTS = Path(__file__).parents[1] / "build" / "screenshots"
"""Screenshots are kept here after the tests."""


def _missing() -> str | None:
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if not absent:
        return None
    packages = "apt-get install chromium chromium-driver"
    return f"{' and '.join(absent)} not found: this test looks at a page in a real browser ({packages})"


@contextmanager
def chromium(width: int = 1180, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """Open a browser; skips the test where there is none, fails it where DISTML_REQUIRE_BROWSER is set."""
    if missing := _missing():
        if os.environ.get("DISTML_REQUIRE_BROWSER"):
            pytest.fail(missing)
        pytest.skip(missing)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    # No sandbox within the sandbox of a container; its /dev/shm is too small for a browser.
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(str(shutil.which("chromedriver"))))
    try:
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        yield driver
    finally:
        driver.quit()


def shoot(driver: Any, name: str) -> bytes:
    """Keep a picture of the whole page; returns its bytes."""
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    content = base64.b64decode(shot["data"])
    SHOTS.mkdir(parents=True, exist_ok=True)
    (SHOTS / f"{name}.png").write_bytes(content)
    return content


def complaints(driver: Any) -> list[str]:
    """What the page wrote to the console: errors, refusals of the policy, failed requests."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] != "INFO"]


def requested(driver: Any) -> set[str]:
    """Addresses that the page asked for."""
    import json

    result = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            result.add(message["params"]["request"]["url"])
    return result


def overflowing(driver: Any) -> bool:
    """Whether the page is wider than its window."""
    return bool(
        driver.execute_script(
            "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )
    )
