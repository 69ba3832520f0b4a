"""Shared by tests with real parts: one browser, because Playwright runs once per process."""

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def chromium():
    """The browser; without it the test is skipped, in CI it fails."""
    found = shutil.which("chromium")
    if found is None and not os.environ.get("CI"):
        pytest.skip("Chromium is missing. On Debian: apt-get install chromium")
    assert found, "CI must have Chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found)
        yield browser
        browser.close()
