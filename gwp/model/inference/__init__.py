"""The transformer's weights arranged for acting: compiled layers, and torch's where those are
not to be had.
"""
