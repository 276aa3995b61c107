"""Any endpoint over HTTP as a destination: signed batches of JSON."""
