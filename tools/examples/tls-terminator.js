'use strict';

// Takes TLS off: each connection is joined to a Unix socket, or one of TCP, in
// native code.
//
//   node tls-terminator.js --unix app.sock --key key.pem --cert cert.pem
//   node tls-terminator.js --tcp [HOST:]PORT --key key.pem --cert cert.pem

const fs = require('node:fs');
const net = require('node:net');
const tls = require('node:tls');
const { parseArgs } = require('node:util');

const { values: args } = parseArgs({ options: {
  host: { type: 'string', default: '127.0.0.1' },
  port: { type: 'string', default: '8443' },
  unix: { type: 'string', default: 'app.sock' },
  tcp: { type: 'string' },
  key: { type: 'string', default: 'key.pem' },
  cert: { type: 'string', default: 'cert.pem' },
} });
// A port alone is one of this machine's.
const [port, host] = args.tcp?.split(/:(?=\d+$)/).reverse() ?? [];
const target = port ? { host, port: Number(port) } : { path: args.unix };

async function serve(client) {
  const name = `${client.remoteAddress}:${client.remotePort}`;
  const upstream = net.connect({ ...target, allowHalfOpen: true });
  // It sees the bytes that go past JavaScript too.
  client.setTimeout(120_000, () => client.destroy());
  try {
    // It begins when the upstream is connected, and fails if that fails.
    const { bytesIn, bytesOut } = await client.pipeToNative(upstream);
    console.log(`${name} sent ${bytesIn} bytes and got ${bytesOut}`);
  } catch (err) {
    console.error(`${name} failed: ${err.message}`);
  } finally {
    // After an end both have closed by themselves. After an error, whichever
    // it came from, the other must not stay behind.
    client.destroy();
    upstream.destroy();
  }
}

// One side may be done while the other is still sending: an end is passed on
// as an end, and is not answered with one. That is allowHalfOpen, on both.
const server = tls.createServer({
  key: fs.readFileSync(args.key),
  cert: fs.readFileSync(args.cert),
  allowHalfOpen: true,
}, serve);

server.listen(Number(args.port), args.host, () => {
  const { address, port } = /** @type {net.AddressInfo} */ (server.address());
  console.log(`listening on ${address}:${port}`);
});
