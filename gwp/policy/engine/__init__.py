"""Acting at speed: the solver over fused weights, slots that many robots share, and the engine
that steps them together.
"""
