"""A TLS peer that does what others do not, to somebody that sends back what it gets.

usage: hostile.py client PORT
       hostile.py server          prints the port that it listens on

For each line of stdin, "VERSION CASE", it has one connection, and prints a line of JSON: what has come back, and how
the connection has ended.
"""

import hashlib
import json
import socket
import struct
import sys

from tlslite.api import HandshakeSettings, TLSConnection, X509CertChain, parsePEMKey
from tlslite.constants import AlertDescription, AlertLevel, ContentType, HandshakeType, KeyUpdateMessageType
from tlslite.errors import TLSAbruptCloseError, TLSRemoteAlert
from tlslite.messages import Alert, Message

LIMIT = 1 << 14


class Peer:
    def __init__(self, plain, is_client, version):
        self.plain = plain
        self.plain.settimeout(30)
        self.plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tls = TLSConnection(self.plain)
        self.records = self.tls._recordLayer
        self.received = bytearray()
        settings = HandshakeSettings()
        settings.minVersion = settings.maxVersion = (3, 3) if version == "TLSv1.2" else (3, 4)
        settings.record_size_limit = LIMIT + 1
        if is_client:
            self.tls.handshakeClientCert(settings=settings, serverName="localhost")
        else:
            chain = X509CertChain()
            with open("localhost.pem", encoding="ascii") as file:
                chain.parsePemList(file.read())
            with open("localhost.key", encoding="ascii") as file:
                key = parsePEMKey(file.read(), private=True)
            self.tls.handshakeServer(certChain=chain, privateKey=key, settings=settings)

    def record(self, data, content_type=ContentType.application_data):
        """One record with all of the data, which may be none or too much."""
        run(self.records.sendRecord(Message(content_type, bytearray(data))))

    def sealed(self, data, content_type=ContentType.application_data):
        """The bytes of that record instead, header and all."""
        taken = bytearray()

        def take(part):
            taken.extend(part)
            yield from ()

        self.records._recordSocket._sockSendAll = take
        self.record(data, content_type)
        del self.records._recordSocket._sockSendAll
        return taken

    def alert(self, level, description):
        run(self.records.sendRecord(Alert().create(description, level)))

    def key_update(self, request):
        run(self.tls.send_keyupdate_request(request))

    def echo(self, data):
        """Sends it, and waits for it: whatever comes next finds nothing under way."""
        self.record(data)
        self.receive(len(data))

    def receive(self, size):
        data = self.tls.read(max=size, min=size)
        assert len(data) == size, f"{len(data)} of {size} bytes came back"
        self.received += data

    def finish(self):
        """How the connection ends. With what is under way."""
        try:
            while data := self.tls.read():
                self.received += data
            return "close_notify"
        except TLSRemoteAlert as alert:
            return AlertDescription.toStr(alert.description)
        except (TLSAbruptCloseError, ConnectionError):
            return "no close_notify"
        except TimeoutError:
            return "silence"


def run(generator):
    for _ in generator:
        pass


def close(peer):
    peer.alert(AlertLevel.warning, AlertDescription.close_notify)
    return peer.finish()


# --- What is odd, but allowed ---------------------------------------------------------------------------------------


def one_byte_records(peer):
    for i in range(3000):
        peer.record([i % 251])
    peer.receive(3000)
    return close(peer)


def empty_records(peer):
    for i in range(300):
        peer.record(b"")
        peer.record([i % 251] * (i % 7 + 1))
        peer.record(b"")
    peer.receive(sum(i % 7 + 1 for i in range(300)))
    return close(peer)


def full_records(peer):
    for i in range(20):
        peer.record([i] * LIMIT)
        peer.receive(LIMIT)
    return close(peer)


def padding(peer):
    peer.records.padding_cb = lambda length, content_type, most: LIMIT - length
    for i in range(100):
        peer.record([i] * (i + 1))
    peer.receive(100 * 101 // 2)
    return close(peer)


def key_updates(peer):
    """Half of them ask for one of the other side's."""
    requests = [KeyUpdateMessageType.update_not_requested, KeyUpdateMessageType.update_requested]
    for i in range(200):
        peer.key_update(requests[i % 2])
        peer.record([i] * 100)
    peer.receive(200 * 100)
    return close(peer)


def key_updates_while_receiving(peer):
    for i in range(20):
        peer.record([i] * LIMIT)
        peer.key_update(KeyUpdateMessageType.update_requested)
        peer.receive(LIMIT)
    return close(peer)


def many_key_updates(peer):
    """And nothing in between."""
    peer.echo(b"before")
    for _ in range(100):
        peer.key_update(KeyUpdateMessageType.update_not_requested)
    peer.echo(b"after")
    return close(peer)


def byte_by_byte(peer):
    """A segment for each byte, and records in two."""
    for byte in peer.sealed(b"slowly"):
        peer.plain.send(bytes([byte]))
    records = peer.sealed(b"a" * 1000) + peer.sealed(b"b" * 1000)
    for i in range(0, len(records), 700):
        peer.plain.send(records[i : i + 700])
    peer.receive(2006)
    return close(peer)


def user_canceled(peer):
    peer.echo(b"before")
    peer.alert(AlertLevel.warning, AlertDescription.user_canceled)
    peer.echo(b"after")
    # Without a splice, and with TLS 1.3, the FIN has to end what the close_notify ends.
    peer.alert(AlertLevel.warning, AlertDescription.close_notify)
    peer.plain.shutdown(socket.SHUT_WR)
    return peer.finish()


def data_after_close_notify(peer):
    peer.echo(b"before")
    peer.alert(AlertLevel.warning, AlertDescription.close_notify)
    peer.record(b"after")
    return peer.finish()


def data_before_close_notify(peer):
    """In one segment."""
    peer.echo(b"before")
    records = peer.sealed(b"together")
    peer.plain.send(records)
    return close(peer)


# --- How a connection breaks ----------------------------------------------------------------------------------------


def many_empty_records(peer):
    peer.echo(b"before")
    peer.plain.send(b"".join(peer.sealed(b"") for _ in range(40)))
    return peer.finish()


def many_warnings(peer):
    peer.echo(b"before")
    warning = [AlertLevel.warning, AlertDescription.user_canceled]
    peer.plain.send(b"".join(peer.sealed(warning, ContentType.alert) for _ in range(10)))
    return peer.finish()


def fatal_alert(peer):
    peer.echo(b"before")
    peer.alert(AlertLevel.fatal, AlertDescription.internal_error)
    return peer.finish()


def unknown_alert(peer):
    """With a number that is not assigned."""
    peer.echo(b"before")
    peer.alert(AlertLevel.fatal, 199)
    return peer.finish()


def bad_mac(peer):
    peer.echo(b"before")
    record = peer.sealed(b"damaged")
    record[-1] ^= 1
    peer.plain.send(record)
    return peer.finish()


def bad_mac_after_data(peer):
    """In one segment."""
    records = peer.sealed(b"before") + peer.sealed(b"damaged")
    records[-1] ^= 1
    peer.plain.send(records)
    return peer.finish()


def oversized_record(peer):
    peer.echo(b"before")
    peer.plain.send(struct.pack("!BHH", ContentType.application_data, 0x0303, LIMIT + 2049))
    return peer.finish()


def too_much_cleartext(peer):
    peer.echo(b"before")
    peer.record(b"x" * (LIMIT + 1))
    return peer.finish()


def truncated_record(peer):
    peer.echo(b"before")
    peer.plain.send(peer.sealed(b"truncated")[:10])
    peer.plain.shutdown(socket.SHUT_WR)
    return peer.finish()


def no_close_notify(peer):
    peer.echo(b"before")
    peer.plain.shutdown(socket.SHUT_WR)
    return peer.finish()


def reset(peer):
    peer.echo(b"before")
    peer.plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.plain.close()
    return "reset"


def not_tls(peer):
    peer.echo(b"before")
    peer.plain.send(b"GET / HTTP/1.1\r\n\r\n")
    return peer.finish()


def unknown_record(peer):
    peer.echo(b"before")
    peer.record(b"what", 99)
    return peer.finish()


def change_cipher_spec(peer):
    peer.echo(b"before")
    peer.plain.send(b"\x14\x03\x03\x00\x01\x01")
    return close(peer)


def empty_handshake_record(peer):
    peer.echo(b"before")
    peer.record(b"", ContentType.handshake)
    peer.plain.shutdown(socket.SHUT_WR)
    return peer.finish()


def finished_again(peer):
    peer.echo(b"before")
    peer.record(bytes([HandshakeType.finished, 0, 0, 12]) + bytes(12), ContentType.handshake)
    return peer.finish()


def main(role, port=None):
    if role == "server":
        listener = socket.create_server(("127.0.0.1", 0))
        print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    for line in sys.stdin:
        version, name = line.split()
        plain = listener.accept()[0] if role == "server" else socket.create_connection(("127.0.0.1", port))
        with plain:
            peer = Peer(plain, role == "client", version)
            end = globals()[name](peer)
        digest = hashlib.sha256(peer.received).hexdigest()[:16]
        print(json.dumps({"got": f"{len(peer.received)} {digest}", "end": end}), flush=True)


main(*sys.argv[1:])
