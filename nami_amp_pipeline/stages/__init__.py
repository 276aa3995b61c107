"""The four stages of a micro-batch: capture, snapshots, prepare, deliver."""
