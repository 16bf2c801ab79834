"""Gives the device TUN_FD a header of another length, or in another byte order, and runs a program.

usage: tun-exec --offload python3 vnet.py LENGTH le|be|native PROGRAM [ARGUMENT]...

Prints 'cannot' and ends well if the kernel has no such byte order.
"""

import errno
import fcntl
import os
import struct
import sys

TUNSETVNETHDRSZ = 0x400454D8
TUNSETVNETLE = 0x400454DC
TUNSETVNETBE = 0x400454DE

_, length, order, *command = sys.argv
fd = int(os.environ['TUN_FD'])
fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack('i', int(length)))
if order != 'native':
    try:
        fcntl.ioctl(fd, TUNSETVNETLE if order == 'le' else TUNSETVNETBE, struct.pack('i', 1))
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        print('cannot', flush=True)
        sys.exit()
os.execvp(command[0], command)
