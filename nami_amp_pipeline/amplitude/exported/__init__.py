"""Readers of what Amplitude holds: its Export API, or files that it exported to a folder or to object storage."""

from nami_amp_pipeline.amplitude.exported.export_api import ExportApi, export_address
from nami_amp_pipeline.amplitude.exported.files import ExportFolder
from nami_amp_pipeline.amplitude.exported.object_storage import ExportBucket
from nami_amp_pipeline.amplitude.exported.source import HOUR, Chunk, ExportSource

__all__ = ["HOUR", "Chunk", "ExportApi", "ExportBucket", "ExportFolder", "ExportSource", "export_address"]
