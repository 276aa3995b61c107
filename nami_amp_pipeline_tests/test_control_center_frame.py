"""The Control Center's frame: every page answers, and what stands before the pages refuses what it must."""

from __future__ import annotations

from pathlib import Path

import pytest

from nami_amp_pipeline.control_center.pages import PAGES
from nami_amp_pipeline_tests.support.control_center import client


@pytest.mark.parametrize("name", [module.navigation[0] for module in PAGES if hasattr(module, "navigation")])
def test_each_page_of_an_app_answers_before_there_is_an_integration(tmp_path: Path, name: str) -> None:
    pages = client(tmp_path)
    answer = pages.get(pages.app.state.site.address(name, app="radio"))  # type: ignore[attr-defined]
    assert answer.status_code == 200, answer.text
    assert 'aria-current="page"' in answer.text


def test_the_first_page_opens_an_app_by_its_id(tmp_path: Path) -> None:
    pages = client(tmp_path)
    assert "No app has an integration yet" in pages.get("/").text
    answer = pages.get("/?q=radio&open=1")
    assert answer.url.path == "/apps/radio/integrations"
    assert "No integration yet" in answer.text


def test_headers_of_each_answer(tmp_path: Path) -> None:
    pages = client(tmp_path)
    for path in ("/", "/static/control-center.css", "/nowhere"):
        headers = pages.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == ("no-cache" if "static" in path else "no-store")


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.2", "", "[::", "a b"])
def test_another_host_is_refused(tmp_path: Path, host: str) -> None:
    assert client(tmp_path).get("/", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("path", ["/apps/a%20b/integrations", "/apps/..%2f/integrations", "/apps//integrations"])
def test_what_is_no_app_is_not_found(tmp_path: Path, path: str) -> None:
    answer = client(tmp_path).get(path)
    assert answer.status_code == 404
    assert "Not found" in answer.text


def test_a_number_without_end_is_no_bug(tmp_path: Path) -> None:
    answer = client(tmp_path).get(f"/apps/radio/backfills/{'9' * 5_000}")
    assert (answer.status_code, answer.text) == (414, "The address is too long.\n")
    assert client(tmp_path).get(f"/apps/radio/backfills/{'9' * 3_000}").status_code == 404
    assert client(tmp_path).get(f"/apps/radio/refused/{'9' * 3_000}").status_code == 404
