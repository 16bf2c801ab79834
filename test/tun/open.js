'use strict';

// What spliceTo() says to a device. usage: tun-exec node open.js FRAMING [DIRECTION]

const tls = require('tls');

const psk = Buffer.alloc(32, 1);
const options = { ciphers: 'PSK', maxVersion: 'TLSv1.2' };

const server = tls.createServer({ ...options, pskCallback: () => psk }, (socket) => {
  try {
    const { 2: framing, 3: direction } = process.argv;
    socket.spliceTo({ fd: Number(process.env.TUN_FD), framing, direction });
    console.log('fits');
  } catch (err) {
    console.log(err.message, err.code);
  }
  process.exit();
});
server.listen(0, '127.0.0.1', () => tls.connect({
  ...options,
  port: server.address().port,
  checkServerIdentity() {},
  pskCallback: () => ({ psk, identity: 'x' }),
}).on('error', () => {}));
