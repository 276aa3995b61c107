"""What the asset pages of Dagster's UI show: descriptions, columns, metadata, previews."""
