"""Tests, named after the promise that they keep."""
