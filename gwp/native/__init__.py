"""Code that is compiled on the machine where it runs, at its first use. Everything works
without it, slower.

`passes.cpp`: the layers of an inference pass in fp32 on the CPU
(`gwp.model.inference.compiled`). Between the products of a small batch of tokens torch's
operators, their dispatch and their copies take as long as the products; one call does the whole
pass, on the model's own weights. `pictures.cpp`: decoded frames to scaled pictures
(`gwp.scale`), where two libraries and the copies between them take a fifth of the time of
decoding.
"""
