"""Continuous batching: many robots on one device, stepped together whatever step each is at.

schedule    who computes when (pure: no clock, no tensors)
pace        how fast a line moves
slots       the rows of the batch: buffers of fixed size
runner      the policy's numbers on those rows: encode, step, move, read
job         a request and its answer to come
engine      the thread that joins them; the only name that others need
"""
