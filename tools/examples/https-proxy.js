'use strict';

// A forward proxy to which clients speak HTTPS: CONNECT joins a client to a server
// of its choice, in native code.
//
//   node https-proxy.js --key key.pem --cert cert.pem --allow 443
//   curl --proxy https://localhost:8443 https://example.com
//
// Whoever can connect to it can use it. Think of that before you give it another
// --host: what it can reach, they can.

const fs = require('node:fs');
const https = require('node:https');
const net = require('node:net');
const { once } = require('node:events');
const { parseArgs } = require('node:util');

const { values: args } = parseArgs({ options: {
  host: { type: 'string', default: '127.0.0.1' },
  port: { type: 'string', default: '8443' },
  key: { type: 'string', default: 'key.pem' },
  cert: { type: 'string', default: 'cert.pem' },
  allow: { type: 'string', multiple: true, default: ['443'] },
} });

function refuse(client, status) {
  client.end(`HTTP/1.1 ${status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`);
  client.destroySoon();
}

// One side may be done while the other is still sending: an end is passed on
// as an end, and is not answered with one. That is allowHalfOpen, on both.
const proxy = https.createServer({
  key: fs.readFileSync(args.key),
  cert: fs.readFileSync(args.cert),
  allowHalfOpen: true,
}, (request, response) => response.writeHead(405, { Allow: 'CONNECT' }).end());

proxy.on('connect', async ({ url }, /** @type {import('node:tls').TLSSocket} */ client, head) => {
  // The client may fail before pipeToNative() has it, and an 'error' that nobody listens to
  // would end the process.
  client.on('error', () => {});
  const [, host, port] = /^\[?([^[\]]+)\]?:(\d+)$/.exec(url) ?? [];
  if (!args.allow.includes(port))
    return refuse(client, '403 Forbidden');
  const server = net.connect({ host, port: Number(port), allowHalfOpen: true });
  // It sees the bytes that go past JavaScript too.
  client.setTimeout(120_000, () => client.destroy());
  try {
    await once(server, 'connect');
  } catch (err) {
    console.error(`${url} failed: ${err.message}`);
    return refuse(client, '502 Bad Gateway');
  }
  try {
    client.write('HTTP/1.1 200 Connection established\r\n\r\n');
    // The head is what the client has sent without waiting for that.
    const { bytesIn, bytesOut } = await client.pipeToNative(server, { head });
    console.log(`${url} got ${bytesIn} bytes and sent ${bytesOut}`);
  } catch (err) {
    console.error(`${url} failed: ${err.message}`);
  } finally {
    client.destroy();
    server.destroy();
  }
});

proxy.listen(Number(args.port), args.host, () => {
  const { address, port } = /** @type {net.AddressInfo} */ (proxy.address());
  console.log(`listening on ${address}:${port}`);
});
