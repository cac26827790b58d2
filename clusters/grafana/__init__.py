"""Dashboards: what a run, its data and an endpoint look like, beside what Ray's own show.

python -m clusters.grafana      writes training.json, data.json and serving.json anew
"""
