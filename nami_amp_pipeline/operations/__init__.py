"""What people ask and do: status, trace, dead letters, integrations, doctor."""
