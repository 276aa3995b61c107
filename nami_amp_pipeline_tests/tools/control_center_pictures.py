"""Takes the pictures of docs/control-center.md: ``python -m nami_amp_pipeline_tests.tools.control_center_pictures``."""

from __future__ import annotations

import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
from selenium.webdriver import Chrome

from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.integrations import NewIntegration
from nami_amp_pipeline.sample import generate
from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.storage.duckdb_engine import sql
from nami_amp_pipeline_tests.support.browser import chromium, look
from nami_amp_pipeline_tests.support.command_line import tick
from nami_amp_pipeline_tests.support.control_center import served

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDTH, HEIGHT = 1200, 900
WRONG_KEY = "00000000000000000000000000wrong0"

PICTURES = {
    "control-center-integrations": ("/apps/radio/integrations", "light"),
    "control-center-form": ("/apps/radio/integrations/amplitude/new", "light"),
    "control-center-preview": ("/apps/radio/integrations/main/preview?show=1", "dark"),
}
"""Name of the file: the page, and light or dark."""


def make_home(folder: Path, endpoint: str) -> Settings:
    """Sample events, an integration that works, one that is off, and one whose key is wrong."""
    settings = Settings(home=folder / ".nami-amp")
    settings.home.mkdir()
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=30)
    with duckdb.connect(str(settings.home / "warehouse.duckdb")) as connection:
        connection.execute(sql("nami_events"))
        connection.register("sample", pa.Table.from_batches(generate(300, apps=["radio"], start=start)))
        connection.execute("INSERT INTO nami_events BY NAME FROM sample")
    with Operations(settings, by="ana") as operations:
        for name, key in (("main", "a" * 32), ("growth", "b" * 32), ("staging", WRONG_KEY)):
            operations.add(
                NewIntegration("radio", name, endpoint, Secret(key), allow_custom_endpoint=True, events=["all"])
            )
        operations.disable("radio/growth")
    tick(folder, "pictures")
    return settings


def take(browser: Chrome, url: str, name: str, path: str, scheme: str) -> None:
    """One picture."""
    look(browser, WIDTH, scheme)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get(url + path)
    browser.save_screenshot(str(IMAGES / f"{name}.png"))
    sys.stdout.write(f"{IMAGES / name}.png\n")


def main() -> None:
    """Takes all of them."""
    sandbox = Sandbox(refused_keys=[WRONG_KEY], options=Options(throttle=False))
    with tempfile.TemporaryDirectory() as folder, SandboxServer(sandbox) as amplitude:
        settings = make_home(Path(folder), amplitude.endpoint)
        with served(settings) as url, tempfile.TemporaryDirectory() as profile:
            browser = chromium(Path(profile))
            try:
                for name, (path, scheme) in PICTURES.items():
                    take(browser, url, name, path, scheme)
            finally:
                browser.quit()


if __name__ == "__main__":
    main()
