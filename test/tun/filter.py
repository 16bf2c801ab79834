"""Runs a program whose TAP device (TUN_FD) takes no IPv6 from the kernel: a filter drops it.

usage: tun-exec --tap python3 filter.py PROGRAM [ARGUMENT]...
"""

import ctypes
import fcntl
import os
import struct
import sys

TUNATTACHFILTER = 0x401054D5
ETHERTYPE_AT = 12
ETHERTYPE_IPV6 = 0x86DD

# BPF: code, jumps if true and if false, value.
program = [
    (0x28, 0, 0, ETHERTYPE_AT),  # Load two bytes.
    (0x15, 0, 1, ETHERTYPE_IPV6),  # Compare.
    (0x06, 0, 0, 0),  # Drop.
    (0x06, 0, 0, 0xFFFFFFFF),  # Take all of it.
]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in program))
fd = int(os.environ['TUN_FD'])
fcntl.ioctl(fd, TUNATTACHFILTER, struct.pack('HP', len(program), ctypes.addressof(code)))
os.execvp(sys.argv[1], sys.argv[1:])
