"""The robot's side of the endpoint: needs numpy, msgpack and websockets, and imports in a blink.

from gwp.client import Client
client = Client("ws://policy-host:8000", api_key="...")
buffer = client.describe().buffer(client.act)
while running:
    robot.send(buffer.next_action(observe))
"""

from gwp.client.aio import AsyncClient
from gwp.client.buffering.buffer import ChunkBuffer, Executed
from gwp.client.client import Client
from gwp.client.connection.session import Episode
from gwp.client.connection.wire import ClientError
from gwp.client.profile import Profile
from gwp.protocol.messages import ActionChunk, Observation

__all__ = [
    "ActionChunk",
    "AsyncClient",
    "ChunkBuffer",
    "Client",
    "ClientError",
    "Episode",
    "Executed",
    "Observation",
    "Profile",
]
