"""Runs a program with a device as file descriptor 3 (TUN_FD): macvtap, or one that is open for reading alone.

usage: python3 macvtap.py DEVICE FLAGS PROGRAM [ARGUMENT]...

DEVICE is /dev/tapN of a macvtap link, or /dev/net/tun. FLAGS are those of TUNSETIFF, as words: TUN, TAP, NO_PI, VNET_HDR;
READ_ONLY is none of them. Neither Node nor tun-exec can do either.
"""

import fcntl
import os
import struct
import sys

TUNSETIFF = 0x400454CA
FLAGS = {'TUN': 0x1, 'TAP': 0x2, 'NO_PI': 0x1000, 'VNET_HDR': 0x4000, 'READ_ONLY': 0}

_, device, flags, *command = sys.argv
fd = os.open(device, os.O_RDONLY if 'READ_ONLY' in flags.split(',') else os.O_RDWR)
# The name is that of the link, whatever is given.
fcntl.ioctl(fd, TUNSETIFF, struct.pack('16sH22x', b'', sum(FLAGS[flag] for flag in flags.split(','))))
if fd != 3:
    os.dup2(fd, 3)
os.set_inheritable(3, True)
os.environ['TUN_FD'] = '3'
os.execvp(command[0], command)
