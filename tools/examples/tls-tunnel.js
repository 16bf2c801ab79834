'use strict';

// Puts TLS on, for a program that does not speak it: each connection to a local
// port or Unix socket is joined to one to the server, in native code.
//
//   node tls-tunnel.js --port 6379 --connect HOST:PORT --ca ca.pem
//   node tls-tunnel.js --unix app.sock --connect HOST:PORT --ca ca.pem

const fs = require('node:fs');
const net = require('node:net');
const tls = require('node:tls');
const { parseArgs } = require('node:util');

const { values: args } = parseArgs({ options: {
  host: { type: 'string', default: '127.0.0.1' },
  port: { type: 'string' },
  unix: { type: 'string' },
  connect: { type: 'string', default: '' },
  ca: { type: 'string' },
  servername: { type: 'string' },
} });
const [, host, port] = /^(.+):(\d+)$/.exec(args.connect) ?? [];
if (!port || !(args.port || args.unix)) {
  console.error('usage: node tls-tunnel.js --port N|--unix FILE --connect HOST:PORT [--ca FILE] [--servername NAME]');
  process.exit(2);
}

// The certificate must be for this name. An IP address is not sent as one (SNI).
const servername = args.servername ?? (net.isIP(host) ? undefined : host);
const ca = args.ca && fs.readFileSync(args.ca);
const context = tls.createSecureContext({ ca });
let count = 0;

// One side may be done while the other is still sending: an end is passed on
// as an end, and is not answered with one. That is allowHalfOpen, on both.
const tunnel = net.createServer({ allowHalfOpen: true }, (client) => {
  const name = `connection ${++count}`;
  const server = tls.connect({ host, port: Number(port), servername, secureContext: context, allowHalfOpen: true });
  // A splice with a handle leaves the sockets to the program, and an 'error' that nobody listens to would end the
  // process. The splice says it, too. With pipeToNative() nobody has to listen.
  client.on('error', () => {});
  server.on('error', () => {});
  // It sees the bytes that go past JavaScript too, and those of the handshake.
  server.setTimeout(120_000, () => server.destroy(new Error('timeout')));

  // It begins when the server has been verified, and fails if that fails. The
  // client is closed when it is over, whichever way that is.
  const splice = server.spliceTo({ stream: client, autoClose: true });
  splice.on('error', (err) => console.error(`${name} failed: ${err.message}`));
  splice.on('close', ({ bytesIn, bytesOut, reason }) => {
    console.log(`${name} is over (${reason}), sent ${bytesOut} bytes and got ${bytesIn}`);
    server.destroy();
  });
  splice.start();
});

tunnel.listen(args.unix ? { path: args.unix } : { host: args.host, port: Number(args.port) }, () => {
  const address = tunnel.address();
  console.log(`listening on ${typeof address === 'string' ? address : `${address.address}:${address.port}`}`);
});
