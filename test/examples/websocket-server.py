# usage: websocket-server.py PORT
# Sends each binary message back, and says what its SHA-256 was. At /bye it is the one that closes.
import asyncio
import hashlib
import sys

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


async def connection(socket):
    if socket.request.path == "/bye":
        await socket.close(4001, "bye")
    try:
        while True:
            message = await socket.recv()
            await socket.send(message)
            await socket.send(hashlib.sha256(message).hexdigest())
    except ConnectionClosed:
        pass
    request = socket.request
    print(request.path, request.headers["Host"], "closed", socket.close_code, socket.close_reason, flush=True)


async def main():
    async with serve(connection, "127.0.0.1", int(sys.argv[1]), max_size=None, compression=None) as server:
        print("listening", flush=True)
        await server.serve_forever()


asyncio.run(main())
