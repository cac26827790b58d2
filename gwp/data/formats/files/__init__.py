"""How files of a set are listed, fetched and parsed, whatever the format."""
