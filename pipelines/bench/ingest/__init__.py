"""The stream into training workers beside other ways to read: `gwp bench ingest`."""
