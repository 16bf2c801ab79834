'use strict';

// A stand-in for an iOS device at the other end of a tunnel: what it says in the handshake, and then a splice to a TUN
// device.
//
// usage: TUN_FD=3 node tunnel-device.js listen HOST PORT CERT KEY
//
// With SINGLE in the environment it sends one packet per record. SIGTERM makes it go away.

const fs = require('node:fs');
const tls = require('node:tls');
const { once } = require('node:events');

const { 3: host, 4: port, 5: cert, 6: key } = process.argv;
const kHeader = 'CDTunnel'.length + 2;

// The host sends its request and then waits.
async function readRequest(socket) {
  let bytes = Buffer.alloc(0);
  let length = kHeader;
  while (bytes.length < length) {
    const { 0: chunk } = await once(socket, 'data');
    bytes = Buffer.concat([bytes, chunk]);
    if (bytes.length >= kHeader)
      length = kHeader + bytes.readUInt16BE(kHeader - 2);
  }
  return JSON.parse(bytes.toString('utf8', kHeader));
}

function answer(socket, mtu) {
  const body = JSON.stringify({
    type: 'serverHandshakeResponse',
    clientParameters: { address: 'fd12::2', mtu, netmask: 'ffff:ffff:ffff:ffff::' },
    serverAddress: 'fd12::1',
    serverRSDPort: 58783,
  });
  const header = Buffer.from('CDTunnel\0\0');
  header.writeUInt16BE(body.length, kHeader - 2);
  socket.write(Buffer.concat([header, Buffer.from(body)]));
}

const server = tls.createServer({
  cert: fs.readFileSync(cert), key: fs.readFileSync(key), requestCert: true, rejectUnauthorized: false,
  maxVersion: 'TLSv1.2', noDelay: true,
}, async (socket) => {
  const { mtu } = await readRequest(socket);
  answer(socket, mtu);
  console.log('up');
  process.once('SIGTERM', () => socket.destroy());
  // There is always room for one packet, so that a record never has more than that.
  const highWaterMark = process.env.SINGLE ? 1 : undefined;
  try {
    await socket.pipeToNative(Number(process.env.TUN_FD), { framing: 'ipv6', highWaterMark });
  } catch (err) {
    console.error(err.message);
  }
});
server.listen(Number(port), host, () => console.log('listening'));
