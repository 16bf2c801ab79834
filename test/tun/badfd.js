'use strict';

// A device that is gone, or that was never there. usage: tun-exec node badfd.js DIRECTION
// or, with the descriptor of a device that is attached to none: node badfd.js unattached
//
// Prints 'up' when the splice runs, and then its errors.

const fs = require('fs');
const tls = require('tls');

const psk = Buffer.alloc(32, 1);
const options = { ciphers: 'PSK', maxVersion: 'TLSv1.2' };
const direction = process.argv[2];

function show(how, { message, code, errno, syscall, side, stack }) {
  console.log(how, JSON.stringify({ message, code, errno, syscall, side, stack: stack.split('\n')[0] }));
}

const server = tls.createServer({ ...options, pskCallback: () => psk }, (socket) => {
  if (direction === 'unattached') {
    const fd = fs.openSync('/dev/net/tun', 'r+');
    try {
      socket.spliceTo({ fd });
    } catch (err) {
      show('thrown', err);
    }
    process.exit();
  }
  const splice = socket.spliceTo({ fd: Number(process.env.TUN_FD), direction });
  splice.on('error', (err) => show('emitted', err));
  splice.on('close', () => process.exit());
  splice.start();
  console.log('up');
});
server.listen(0, '127.0.0.1', () => {
  const client = tls.connect({
    ...options,
    port: server.address().port,
    checkServerIdentity() {},
    pskCallback: () => ({ psk, identity: 'x' }),
  });
  client.on('error', () => {});
  client.resume();
  // Packets for the device, for as long as it takes them.
  const packet = Buffer.alloc(20);
  packet[0] = 0x45;
  packet[3] = packet.length;
  if (direction === 'in')
    setInterval(() => client.write(packet), 10);
});
