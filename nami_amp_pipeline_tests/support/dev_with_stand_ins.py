"""``nami-amp dev`` as a process of its own, with stand-ins for the processes that it starts; the pages end slowly."""

from __future__ import annotations

import pytest

from nami_amp_pipeline.cli import main
from nami_amp_pipeline_tests.support.dev_stand_ins import command, patched

if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as monkeypatch:
        patched(monkeypatch, webserver=lambda port, workspace: command("slow-webserver", port, workspace))
        main()
