"""A second engine, where there is no vLLM: transformers' continuous batching behind vLLM's protocol.

In the order in which it is best read:

sampling.py   what a chat completion request asks for, and what of it cannot be done here
text.py       tokens become text, as they come, up to a stop string
events.py     the same answer as vLLM's server-sent events, or as one object
sampler.py    the next token of each request in the batch, by that request's own sampling
engine.py     the model, its batch, and one request in it
chat.py       a chat completion by all of these
"""
