"""Ray's dashboard, through the gateway's login, in a real Chromium."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Appliance

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]

# Without these, Chromium itself looks for its maker's servers.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]


def test_the_tuning_job_is_seen_in_rays_dashboard_after_a_login(appliance: Appliance) -> None:
    from playwright.sync_api import expect, sync_playwright

    endpoint = appliance.ask("status")["endpoint"]
    job = appliance.ask("tune", "list")[0]
    key = (appliance.home / "secrets" / "operator.key").read_text().strip()
    elsewhere: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        # The CA is the site's own; TLS itself is tested with the CA file in the gateway's tests.
        page = browser.new_page(ignore_https_errors=True)
        page.on(
            "request",
            lambda request: (
                elsewhere.append(request.url)
                if not request.url.startswith((endpoint, "data:", "blob:"))
                else None
            ),
        )
        page.goto(f"{endpoint}/ray/")
        expect(page).to_have_url(f"{endpoint}/login")
        page.get_by_label("API key").fill("not the key")
        page.get_by_role("button").click()
        expect(page.get_by_role("alert")).to_be_visible()
        page.get_by_label("API key").fill(key)
        page.get_by_role("button").click()
        expect(page).to_have_title("Overview | Ray Dashboard", timeout=30_000)
        page.goto(f"{endpoint}/ray/#/jobs")
        expect(page.get_by_text(job["submission_id"]).first).to_be_visible(timeout=30_000)
        browser.close()
    assert elsewhere == [], "the dashboard asked for something outside the appliance"
