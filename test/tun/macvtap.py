"""Runs a program with a macvtap device as file descriptor 3 (TUN_FD).

usage: python3 macvtap.py DEVICE FLAGS PROGRAM [ARGUMENT]...

FLAGS are those of TUNSETIFF, as words: TAP, NO_PI, VNET_HDR. Neither Node nor tun-exec, which is for /dev/net/tun, can
set them.
"""

import fcntl
import os
import struct
import sys

TUNSETIFF = 0x400454CA
FLAGS = {'TAP': 0x2, 'NO_PI': 0x1000, 'VNET_HDR': 0x4000}

_, device, flags, *command = sys.argv
fd = os.open(device, os.O_RDWR)
# The name is that of the link, whatever is given.
fcntl.ioctl(fd, TUNSETIFF, struct.pack('16sH22x', b'', sum(FLAGS[flag] for flag in flags.split(','))))
if fd != 3:
    os.dup2(fd, 3)
os.set_inheritable(3, True)
os.environ['TUN_FD'] = '3'
os.execvp(command[0], command)
