"""Datagrams that are sent many at a time, with UDP_SEGMENT, and received one at a time.

usage: python3 segments.py receive ADDRESS
       python3 segments.py send ADDRESS PORT SIZE [fragment]

With 'fragment' a router may cut them, which IPv4 calls "no DF".

The receiver answers each burst with what it got, so that no queue overflows. The sender compares that, and prints how
many datagrams have arrived in order and unchanged.
"""

import hashlib
import socket
import sys

UDP_SEGMENT = 103
IP_MTU_DISCOVER = 10
IP_PMTUDISC_DONT = 0
BURSTS = 50
MOST = 60000


def family(address):
    return socket.AF_INET6 if ':' in address else socket.AF_INET


def receive(address):
    with socket.socket(family(address), socket.SOCK_DGRAM) as server:
        server.bind((address, 0))
        print(f'listening on {server.getsockname()[1]}', flush=True)
        while True:
            hashes = hashlib.sha256()
            count = 0
            while True:
                datagram, peer = server.recvfrom(65536)
                hashes.update(len(datagram).to_bytes(2, 'big') + datagram)
                count += 1
                # The last one of a burst is shorter, and says so.
                if datagram.endswith(b'end'):
                    break
            server.sendto(f'{count} {hashes.hexdigest()}'.encode(), peer)


def send(address, port, size, may_fragment):
    total = 0
    count = min(MOST // size, 60)
    with socket.socket(family(address), socket.SOCK_DGRAM) as client:
        client.connect((address, port))
        client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
        if may_fragment:
            client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        for burst in range(BURSTS):
            pieces = [bytes([(burst + i) % 256]) * size for i in range(count)] + [b'%dend' % burst]
            hashes = hashlib.sha256()
            for piece in pieces:
                hashes.update(len(piece).to_bytes(2, 'big') + piece)
            client.send(b''.join(pieces))
            answer = client.recv(1000).decode()
            assert answer == f'{len(pieces)} {hashes.hexdigest()}', answer
            total += len(pieces)
    print(f'{total} datagrams')


if sys.argv[1] == 'receive':
    receive(sys.argv[2])
else:
    send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), 'fragment' in sys.argv[5:])
