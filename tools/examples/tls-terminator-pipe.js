'use strict';

// tls-terminator.js as it is written without splices: each chunk of each
// connection is a Buffer that passes through JavaScript.
//
//   node tls-terminator-pipe.js --unix app.sock --key key.pem --cert cert.pem
//   node tls-terminator-pipe.js --tcp [HOST:]PORT --key key.pem --cert cert.pem

const fs = require('node:fs');
const net = require('node:net');
const tls = require('node:tls');
const { once } = require('node:events');
const { pipeline } = require('node:stream/promises');
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
  // Whoever waits below is told. But an 'error' that nobody listens to would
  // end the process.
  client.on('error', () => {});
  upstream.on('error', () => {});
  client.setTimeout(120_000, () => client.destroy());
  try {
    await once(upstream, 'connect');
    await Promise.all([
      pipeline(client, upstream),
      pipeline(upstream, client),
    ]);
    const { bytesRead, bytesWritten } = client;
    console.log(`${name} sent ${bytesRead} bytes and got ${bytesWritten}`);
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
