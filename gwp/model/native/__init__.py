"""The layers of an inference pass as compiled code: fp32 on the CPU.

Between the products of a small batch of tokens torch's operators, their dispatch and their copies take as long as the products; one
C++ file does the whole pass in one call, on the model's own weights. Where no compiler is, `gwp.model.eager` does the same.
"""
