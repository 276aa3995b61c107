"""Long runs and tools that are started by hand."""
