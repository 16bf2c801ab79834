# usage: websocket-client.py URL CA
# Sends messages, each before the answer to the one before has come, and compares what comes back.
import asyncio
import hashlib
import os
import ssl
import sys

from websockets.asyncio.client import connect

SIZES = [0, 1, 125, 126, 65535, 65536, 3 << 20, 1]


async def main():
    context = ssl.create_default_context(cafile=sys.argv[2])
    messages = [os.urandom(size) for size in SIZES]
    async with connect(sys.argv[1], ssl=context, max_size=None, compression=None) as socket:
        async with asyncio.TaskGroup() as group:
            group.create_task(send(socket, messages))
            for message in messages:
                assert await socket.recv() == message
                assert await socket.recv() == hashlib.sha256(message).hexdigest()
        await socket.close(4002, "done")
    print(f"closed {socket.close_code} {socket.close_reason}")


async def send(socket, messages):
    for message in messages:
        await socket.send(message)


asyncio.run(main())
