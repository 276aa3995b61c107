"""Takes the pictures of docs/control-center.md: ``python -m nami_amp_pipeline_tests.tools.control_center_pictures``.

``--all FOLDER`` takes every page instead, light and dark, 1280 and 390 pixels wide, from top to bottom, to look at.
Both need the extra ``bench``, which brings Pillow.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, cast

from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from nami_amp_pipeline.control_center.options import Options
from nami_amp_pipeline.operations.dead_letters import Filter
from nami_amp_pipeline_tests.support.browser import chromium, look, until
from nami_amp_pipeline_tests.support.control_center import served
from nami_amp_pipeline_tests.tools.control_center_home import (
    APP,
    CRM,
    EU_KEY,
    FREE,
    KEYS,
    Month,
    amplitude_is_local,
    make,
)

IMAGES: Final = Path(__file__).parents[2] / "docs" / "images"
COLOURS: Final = 256
VARIANTS: Final = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
PASSWORDS: Final = {"ana": "a-long-password-of-ana", "ben": "a-long-password-of-ben", "cleo": "a-long-password-of-cleo"}


@dataclass(frozen=True)
class Page:
    """A page to take a picture of.

    Attributes:
        path: of the page.
        act: what is done on it before.
        who: looks at it; empty for somebody who has not signed in.
    """

    path: str
    act: Callable[[Chrome], None] = lambda _browser: None
    who: str = "ana"


@dataclass(frozen=True)
class Picture:
    """How a page is shown in the documentation.

    Attributes:
        page: its name in :func:`pages_of`.
        height: in pixels.
        scheme: light or dark.
        width: in pixels.
        top: what stands at the upper edge, as a CSS selector; the top of the page without it.
    """

    page: str
    height: int
    scheme: str = "light"
    width: int = 1280
    top: str = ""


PICTURES: Final = {
    "control-center-apps": Picture("apps-looked", 420),
    "control-center-integrations": Picture("integrations", 820),
    "control-center-form": Picture("form", 860),
    "control-center-form-errors": Picture("form-errors", 820, width=390),
    "control-center-test": Picture("form-test", 400, top="#endpoint"),
    "control-center-http": Picture("http", 800, "dark"),
    "control-center-integration": Picture("integration", 760),
    "control-center-switch": Picture("switch", 360),
    "control-center-test-event": Picture("test-event-sent", 820),
    "control-center-free": Picture("free", 520),
    "control-center-preview": Picture("preview", 860, "dark"),
    "control-center-properties": Picture("properties", 820),
    "control-center-history": Picture("history", 760),
    "control-center-deliveries-all": Picture("deliveries-all", 520, "dark"),
    "control-center-deliveries": Picture("deliveries", 900),
    "control-center-waiting": Picture("waiting", 640),
    "control-center-causes": Picture("refused", 820),
    "control-center-refused": Picture("refused-event", 900, "dark"),
    "control-center-send-again": Picture("send-again", 400),
    "control-center-trace": Picture("trace", 1_060),
    "control-center-trace-narrow": Picture("trace-user", 820, "dark", 390),
    "control-center-backfills": Picture("backfills", 480),
    "control-center-backfill-new": Picture("backfill-new", 880),
    "control-center-backfill": Picture("backfill-plan", 1_020),
    "control-center-reconciliation": Picture("reconciliation", 760),
    "control-center-reconciliation-day": Picture("reconciliation-day", 860, "dark"),
    "control-center-audience": Picture("audience-who", 700),
    "control-center-people": Picture("people", 520),
    "control-center-sign-in": Picture("sign-in", 420, width=390),
    "control-center-viewer": Picture("viewer", 420),
}
"""Name of the file in ``docs/images``: what it shows."""


def press(browser: Chrome, selector: str) -> None:
    """Presses what a selector finds."""
    found = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    found.click()


def write(browser: Chrome, field: str, text: str) -> None:
    """Puts a text into a field instead of what is there."""
    found = browser.find_element(By.ID, field)
    found.clear()
    found.send_keys(text)


def shows(browser: Chrome, text: str) -> None:
    """Waits until the page says something."""
    until(browser, lambda: text in browser.find_element(By.CSS_SELECTOR, "main").text)


def test_of(key: str) -> Callable[[Chrome], None]:
    """Tests a key at the endpoint that is chosen."""

    def act(browser: Chrome) -> None:
        write(browser, "api_key", key)
        press(browser, "button[value='test']")
        shows(browser, "Nothing was stored.")

    return act


def with_errors(browser: Chrome) -> None:
    """Sends a form in which several things are wrong."""
    write(browser, "name", "radio nami")
    write(browser, "api_key", KEYS["main"][:31])
    press(browser, "button[data-none='every']")
    press(browser, "#start-day")
    write(browser, "start_day", "3 November")
    press(browser, "button.main")
    shows(browser, "There is a problem")


def counted(browser: Chrome) -> None:
    """Asks how many events there are."""
    press(browser, "button[value='count']")
    shows(browser, "The warehouse has")


def of_http(browser: Chrome) -> None:
    """Fills in an address."""
    write(browser, "name", "crm-2")
    write(browser, "endpoint", CRM)


def sent(browser: Chrome) -> None:
    """Sends the test event."""
    press(browser, "button.main")
    shows(browser, "Find it")


def conflicting(month: Month) -> Callable[[Chrome], None]:
    """Somebody saves while somebody else has the form open."""

    def act(browser: Chrome) -> None:
        from nami_amp_pipeline.operations.integrations import IntegrationChange

        (row,) = month.by("ben").integrations([f"{APP}/crm"])
        events = ["user.subscription.*", *(() if "user.journey.trial.started" in row.events else ["user.journey.*"])]
        month.by("ben").change(f"{APP}/crm", IntegrationChange(events=events))
        press(browser, "input[name=sandbox][value=skip]")
        press(browser, "button.main")
        shows(browser, "somebody else has changed")

    return act


def pages_of(month: Month) -> dict[str, Page]:
    """Every page by a name."""
    app, ana = f"/apps/{APP}", month.by("ana")
    main, of = f"{app}/integrations/main", f"{app}/deliveries/main"
    letters, _ = ana.dead_letters(Filter(integrations=[f"{APP}/main"], reasons=["rejected"]))
    rows, _ = ana.event_rows(f"{APP}/main", "delivered", "24h", event_type="user.subscription.renewed")
    row = next(row for row in rows if row.user)
    days = ana.reconciled(f"{APP}/main")
    day = next(day for day in days if day.classes.get("missing"))
    form = f"{app}/integrations/amplitude/new"
    return {
        "apps": Page("/"),
        "apps-looked": Page("/?look=1"),
        "integrations": Page(f"{app}/integrations"),
        "form": Page(form),
        "form-test": Page(form, test_of(KEYS["growth"])),
        "form-test-eu": Page(form, test_of(EU_KEY)),
        "form-count": Page(form, counted),
        "form-errors": Page(form, with_errors),
        "http": Page(f"{app}/integrations/http/new", of_http),
        "free": Page(f"/apps/{FREE}/integrations/amplitude/new"),
        "free-integrations": Page(f"/apps/{FREE}/integrations"),
        "integration": Page(main),
        "integration-stopped": Page(f"{app}/integrations/staging"),
        "integration-http": Page(f"{app}/integrations/crm"),
        "conflict": Page(f"{app}/integrations/crm", conflicting(month)),
        "switch": Page(f"{main}/switch"),
        "switch-on": Page(f"{app}/integrations/growth/switch"),
        "remove": Page(f"{app}/integrations/growth/remove"),
        "test-event": Page(f"{main}/test-event"),
        "test-event-sent": Page(f"{main}/test-event", sent),
        "preview": Page(f"{main}/preview?show=1&event=user.subscription.renewed"),
        "preview-skipped": Page(f"{main}/preview?show=1&tab=skipped"),
        "properties": Page(f"{app}/properties"),
        "deliveries-all": Page(f"{app}/deliveries"),
        "deliveries": Page(of),
        "deliveries-30d": Page(f"{of}?window=30d"),
        "deliveries-stopped": Page(f"{app}/deliveries/staging"),
        "events": Page(f"{of}/events?outcome=captured"),
        "requests": Page(f"{of}/requests"),
        "requests-failed": Page(f"{of}/requests?only=failed"),
        "waiting": Page(f"{app}/deliveries/crm/waiting"),
        "waiting-none": Page(f"{of}/waiting"),
        "deliveries-waiting": Page(f"{app}/deliveries/crm"),
        "refused": Page(f"{app}/refused"),
        "refused-event": Page(f"{app}/refused/{letters[0].id}"),
        "send-again": Page(f"{app}/refused/again?integration=main&reason=rejected"),
        "dismiss": Page(f"{app}/refused/dismiss?integration=main&reason=rejected"),
        "trace-empty": Page(f"{app}/trace"),
        "trace": Page(f"{app}/trace?q={row.event_id}"),
        "trace-refused": Page(f"{app}/trace?q={letters[0].event_id}"),
        "trace-user": Page(f"{app}/trace?q={row.user}"),
        "trace-nobody": Page(f"{app}/trace?q=listener-00017"),
        "backfills": Page(f"{app}/backfills"),
        "backfill-new": Page(f"{app}/backfills/new"),
        "backfill-done": Page(f"{app}/backfills/1"),
        "backfill-plan": Page(f"{app}/backfills/2"),
        "backfill-run": Page(f"{app}/backfills/2/run"),
        "reconciliation-all": Page(f"{app}/reconciliation"),
        "reconciliation": Page(f"{app}/reconciliation/main"),
        "reconciliation-no-key": Page(f"{app}/reconciliation/growth"),
        "reconciliation-day": Page(f"{app}/reconciliation/main/days/{day.date}"),
        "audience": Page(f"{app}/reconciliation/main/audience?property=namiml_active_entitlements&value=premium"),
        "audience-who": Page(
            f"{app}/reconciliation/main/audience?property=namiml_active_entitlements&value=premium&place=no_external_id"
        ),
        "history": Page(f"{app}/history"),
        "people": Page(f"{app}/history?kind=people"),
        "no-page": Page(f"{app}/nowhere"),
        "viewer": Page(f"{app}/integrations/main/switch", who="cleo"),
        "viewer-form": Page(main, who="cleo"),
        "viewer-integrations": Page(f"{app}/integrations", who="cleo"),
        "sign-in": Page("/", who=""),
    }


def sign_in(browser: Chrome, url: str, who: str) -> None:
    """Lets somebody sign in; with an empty name, nobody is."""
    browser.delete_all_cookies()
    browser.get(f"{url}/sign-in")
    if who:
        write(browser, "name", who)
        browser.find_element(By.ID, "password").send_keys(PASSWORDS[who], Keys.ENTER)
        until(browser, lambda: not browser.find_elements(By.ID, "password"))


def sized(browser: Chrome, width: int, height: int, scheme: str) -> None:
    """Makes the window so large."""
    look(browser, width, scheme)
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def snap(browser: Chrome, file: Path) -> None:
    """What the window shows, in its most frequent colours: a third of the size."""
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    with Image.open(io.BytesIO(base64.b64decode(shot["data"]))) as opened_picture:
        picture = opened_picture.convert("RGB")
    found = cast("list[tuple[int, tuple[int, int, int]]]", picture.getcolors(1 << 24))
    colours = sorted(found, reverse=True)[:COLOURS]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, colour in colours for part in colour])
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(file, optimize=True)
    sys.stdout.write(f"{file} {file.stat().st_size:,}\n")


def take_all(browser: Chrome, url: str, pages: dict[str, Page], folder: Path) -> None:
    """Every page in each variant, from top to bottom."""
    for name, page in opened(browser, url, pages):
        sized(browser, 1280, 1_000, "light")
        browser.get(url + page.path)
        page.act(browser)
        for width, scheme in VARIANTS:
            sized(browser, width, 800, scheme)
            height = browser.execute_script("scrollTo(0, 0); return document.documentElement.scrollHeight")
            sized(browser, width, min(max(int(height), 800), 12_000), scheme)
            snap(browser, folder / f"{name}-{width}-{scheme}.png")


def opened(browser: Chrome, url: str, pages: dict[str, Page]) -> Iterator[tuple[str, Page]]:
    """The pages one after the other, each with whoever looks at it signed in."""
    who = None
    for name, page in pages.items():
        if page.who != who:
            who = page.who
            sign_in(browser, url, who)
        yield name, page


def take(browser: Chrome, url: str, pages: dict[str, Page]) -> None:
    """The pictures of the documentation."""
    browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    shown = dict(sorted(PICTURES.items(), key=lambda entry: list(pages).index(entry[1].page)))
    wanted = {file: pages[picture.page] for file, picture in shown.items()}
    for file, page in opened(browser, url, wanted):
        picture = PICTURES[file]
        sized(browser, picture.width, picture.height, picture.scheme)
        browser.get(url + page.path)
        page.act(browser)
        if picture.top:
            top = browser.find_element(By.CSS_SELECTOR, picture.top)
            browser.execute_script("scrollTo(0, arguments[0].getBoundingClientRect().top + scrollY - 16)", top)
        else:
            browser.execute_script("scrollTo(0, 0)")
        snap(browser, IMAGES / f"{file}.png")


@contextmanager
def world(home: Path) -> Iterator[tuple[str, Month]]:
    """The Control Center over its month, and people who sign in."""
    month = make(home, datetime.now(UTC))
    people = month.by("ana").people
    for name, password in PASSWORDS.items():
        people.add(name, "viewer" if name == "cleo" else "editor", password)
    options = Options(
        sign_in="password", endpoints=(CRM.rpartition("/")[0] + "/*",), contact="mailto:hello@namiml.example"
    )
    with amplitude_is_local(month), served(month.pipe.settings, options) as url:
        yield url, month
    month.close()


def main(given: Sequence[str] | None = None) -> None:
    """Takes them."""
    parser = argparse.ArgumentParser(description="Takes the pictures of the Control Center.")
    parser.add_argument("--all", metavar="FOLDER", type=Path, help="take every page in four variants into a folder")
    folder = parser.parse_args(given).all
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as profile:
        browser = chromium(Path(profile))
        try:
            with world(Path(home) / "home") as (url, month):
                if folder is None:
                    take(browser, url, pages_of(month))
                else:
                    folder.mkdir(parents=True, exist_ok=True)
                    take_all(browser, url, pages_of(month), folder)
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
