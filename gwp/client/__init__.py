"""The robot's side of the endpoint: needs numpy, msgpack and websockets, and imports in a blink.

from gwp.client import Client, ChunkBuffer
client = Client("ws://policy-host:8000", api_key="...")
buffer = ChunkBuffer(client.act, replan=client.metadata["replan"])
while running:
    robot.send(buffer.next_action(observe))
"""

from gwp.client.buffer import ChunkBuffer
from gwp.client.client import Client
from gwp.client.wire import ClientError
from gwp.protocol.messages import ActionChunk, Observation

__all__ = ["ActionChunk", "ChunkBuffer", "Client", "ClientError", "Observation"]
