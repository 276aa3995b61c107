"""Backfills: sends the events of a window of time again from the warehouse, beside live delivery."""
