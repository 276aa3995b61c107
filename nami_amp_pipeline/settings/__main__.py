"""Writes the table of all settings, for the docs."""

from __future__ import annotations

import sys

from nami_amp_pipeline.settings import settings_table

if __name__ == "__main__":
    sys.stdout.write(settings_table())
