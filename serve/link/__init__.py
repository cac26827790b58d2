"""Between gateways and replicas: one connection each, on which requests of all robots travel
together.
"""
