"""Prints each packet of the device TUN_FD in hexadecimal, on a line of its own.

usage: tun-exec python3 capture.py
"""

import os

fd = int(os.environ['TUN_FD'])
print('ready', flush=True)
while True:
    print(os.read(fd, 70000).hex(), flush=True)
