"""How good a policy is: against recordings, in simulation, as a fleet; and the report that
shows it.
"""
