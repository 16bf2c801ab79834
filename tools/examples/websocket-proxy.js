'use strict';

// Takes TLS off WebSockets: each is joined to a connection to the server, in
// native code. The server answers the handshake, and sees the request as it came.
//
//   node websocket-proxy.js --connect HOST:PORT --key key.pem --cert cert.pem

const fs = require('node:fs');
const https = require('node:https');
const net = require('node:net');
const { once } = require('node:events');
const { parseArgs } = require('node:util');

const { values: args } = parseArgs({ options: {
  host: { type: 'string', default: '127.0.0.1' },
  port: { type: 'string', default: '8443' },
  connect: { type: 'string', default: '' },
  key: { type: 'string', default: 'key.pem' },
  cert: { type: 'string', default: 'cert.pem' },
} });
const [, host, port] = /^(.+):(\d+)$/.exec(args.connect) ?? [];
if (!port) {
  console.error('usage: node websocket-proxy.js [--port PORT] [--key FILE] [--cert FILE] --connect HOST:PORT');
  process.exit(2);
}

// The request as it was before it was parsed.
function requestHead(request) {
  const { method, url, httpVersion, rawHeaders } = request;
  let text = `${method} ${url} HTTP/${httpVersion}\r\n`;
  for (let i = 0; i < rawHeaders.length; i += 2)
    text += `${rawHeaders[i]}: ${rawHeaders[i + 1]}\r\n`;
  return Buffer.from(`${text}\r\n`, 'latin1');
}

// Any other request, and one for another protocol than WebSocket, gets a 426. One
// side of a WebSocket may be done while the other is still sending: allowHalfOpen.
const proxy = https.createServer({
  key: fs.readFileSync(args.key),
  cert: fs.readFileSync(args.cert),
  allowHalfOpen: true,
  shouldUpgradeCallback: ({ headers }) => headers.upgrade?.toLowerCase() === 'websocket',
}, (request, response) => response.writeHead(426, { Connection: 'Upgrade', Upgrade: 'websocket' }).end());

proxy.on('upgrade', async (request, /** @type {import('node:tls').TLSSocket} */ client, head) => {
  const name = `${client.remoteAddress}:${client.remotePort} ${request.url}`;
  const server = net.connect({ host, port: Number(port), allowHalfOpen: true });
  // The client may fail before pipeToNative() has it, and an 'error' that nobody listens to
  // would end the process.
  client.on('error', () => {});
  // It sees the bytes that go past JavaScript too.
  client.setTimeout(120_000, () => client.destroy());
  try {
    await once(server, 'connect');
  } catch (err) {
    console.error(`${name} failed: ${err.message}`);
    client.end('HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n');
    return client.destroySoon();
  }
  try {
    // The server gets the request first, and what the client has sent behind it.
    const { bytesIn, bytesOut } = await client.pipeToNative(server, {
      head: Buffer.concat([requestHead(request), head]),
    });
    console.log(`${name} sent ${bytesIn} bytes and got ${bytesOut}`);
  } catch (err) {
    console.error(`${name} failed: ${err.message}`);
  } finally {
    client.destroy();
    server.destroy();
  }
});

proxy.listen(Number(args.port), args.host, () => {
  const { address, port } = /** @type {net.AddressInfo} */ (proxy.address());
  console.log(`listening on ${address}:${port}`);
});
