"""The other end of what Peer.java does, through sni-proxy.js. A connection that ends without a close_notify is an error.

usage: peer.py client NAME PORT VERSION:WAY...   one connection after the other
       peer.py server NAME PORT VERSION:WAY...   likewise
"""

import socket
import ssl
import sys

role, name, port, *cases = sys.argv[1:]

with open("other", "rb") as file:
    sent = file.read()
with open("sent", "rb") as file:
    expected = file.read()

if role == "client":
    context = ssl.create_default_context(cafile="ca.pem")
else:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{name}.pem", f"{name}.key")
    listener = socket.create_server(("127.0.0.1", int(port)))
    print(f"listens on {listener.getsockname()[1]}", flush=True)


def read(connection):
    try:
        return connection.recv(65536)
    except ssl.SSLZeroReturnError:
        # A close_notify, after one of our own
        return b""


def receive(connection, size=sys.maxsize):
    received = bytearray()
    while len(received) < size and (data := read(connection)):
        received += data
    assert received == expected, f"got {len(received)} bytes"


def talk(connection, version, way):
    assert connection.version() == version
    if way != "half":
        connection.sendall(sent)
    if way == "last":
        # With TLS 1.2 it answers a close_notify with one, and has sent all before.
        if version == "TLSv1.2":
            receive(connection, len(expected))
        # Without waiting for that
        connection.setblocking(False)
        try:
            connection.unwrap()
        except ssl.SSLWantReadError:
            pass
        connection.settimeout(20)
        if version == "TLSv1.2":
            assert read(connection) == b""
        else:
            receive(connection)
        return
    receive(connection)
    if way == "half":
        connection.sendall(sent)
    connection.unwrap()


for case in cases:
    version, way = case.split(":")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version.replace(".", "_")]
    plain = socket.create_connection(("127.0.0.1", int(port))) if role == "client" else listener.accept()[0]
    plain.settimeout(20)
    try:
        with context.wrap_socket(
            plain,
            server_side=role == "server",
            server_hostname=name if role == "client" else None,
            suppress_ragged_eofs=False,
        ) as connection:
            talk(connection, version, way)
        print(f"{case} is good", flush=True)
    except (OSError, AssertionError) as error:
        print(f"{case} failed: {error!r}", flush=True)
