"""Writes the dashboards."""

from clusters.grafana.dashboard import FOLDER, rendered

for name, text in rendered().items():
    (FOLDER / name).write_text(text)
