"""Whole robots on the client: two arms with 14 joints, and a Unitree G1. Each runs against a small
fake of its library, too.

python -m gwp.client.examples.bimanual ws://policy-host:8000 --seconds 20
python -m gwp.client.examples.g1 ws://policy-host:8000 --interface enp3s0
"""
