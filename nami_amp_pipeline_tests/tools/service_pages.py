"""Pictures of a service with a failed run: ``python -m nami_amp_pipeline_tests.tools.service_pages FOLDER``."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer
from nami_amp_pipeline_tests.support.everything import Everything
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.scene import BAD_KEY, GOOD_KEY
from nami_amp_pipeline_tests.support.service import service, wait_for
from nami_amp_pipeline_tests.support.webhook import Webhook


def main(folder: Path) -> None:
    """Starts everything, waits for a run to fail, and goes through the pages."""
    folder.mkdir(parents=True, exist_ok=True)
    sandbox = Sandbox(refused_keys=[BAD_KEY], options=Options(throttle=False))
    postgres = Postgres()
    with (
        tempfile.TemporaryDirectory() as home,
        Webhook() as webhook,
        SandboxServer(sandbox) as server,
        service(
            Path(home) / "service", postgres, NAMI_AMP_TICK_MINUTES="1", NAMI_AMP_EARLY_TICK_SECONDS="10",
            NAMI_AMP_ALERT_WEBHOOK_URL=webhook.url,
        ) as running,
    ):  # fmt: skip
        every = Everything(running, sandbox, server.endpoint)
        every.load("radio", 60, seed=1)
        every.load("fit", 10, seed=2)
        every.add("radio", GOOD_KEY)
        every.add("fit", BAD_KEY)
        running.start("daemon")
        (failed, *_) = wait_for(lambda: every.runs("FAILURE"), every.logs)
        wait_for(lambda: len(webhook.messages) >= 2, every.logs)
        pages = {
            "runs": "/runs",
            "failed-run": f"/runs/{failed['runId']}",
            "automation": "/automation",
            "sensor-alerts": "/locations/nami_amp_pipeline/sensors/alerts",
            "sensor-early": "/locations/nami_amp_pipeline/sensors/early_micro_batch",
            "sensor-failed-runs": "/locations/nami_amp_pipeline/sensors/failed_runs",
            "partition": "/assets/amplitude_deliveries?view=partitions&partition=fit%7Cmain",
            "job": "/locations/nami_amp_pipeline/jobs/micro_batch",
        }
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1500,1000"):
            options.add_argument(argument)
        browser = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
        try:
            for name, path in pages.items():
                browser.get(running.url + path)
                time.sleep(8)
                browser.save_screenshot(str(folder / f"{name}.png"))
        finally:
            browser.quit()
        (folder / "messages.txt").write_text("\n\n".join(webhook.messages))
        (folder / "code-server.log").write_text(running.log("code-server"))
        (folder / "daemon.log").write_text(running.log("daemon"))
        every.context.store.close()
    postgres.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
