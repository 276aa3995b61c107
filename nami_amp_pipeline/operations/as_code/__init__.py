"""Integrations as code: one YAML file says what the integrations are; it is planned, applied and exported."""
