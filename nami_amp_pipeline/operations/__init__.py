"""What people ask and do, in one class: :class:`nami_amp_pipeline.operations.api.Operations`."""
