'use strict';

// A TLS server that joins each connection to an echo service: what a client sends comes back. Prints a line if all of it
// does.

const assert = require('node:assert');
const net = require('node:net');
const tls = require('node:tls');
const { createHash, randomBytes } = require('node:crypto');
const { once } = require('node:events');

// A pre-shared key takes no certificate, and so no other program.
const psk = randomBytes(32);
const options = { ciphers: 'PSK-AES256-GCM-SHA384', maxVersion: 'TLSv1.2' };

async function main() {
  const echo = net.createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket)).listen(0, '127.0.0.1');
  await once(echo, 'listening');
  const server = tls.createServer({ ...options, allowHalfOpen: true, pskCallback: () => psk }, async (client) => {
    await client.pipeToNative(net.connect({ ...echo.address(), host: '127.0.0.1', allowHalfOpen: true }));
    client.destroy();
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');

  const client = tls.connect({
    ...options, port: server.address().port, host: '127.0.0.1', checkServerIdentity() {},
    pskCallback: () => ({ psk, identity: 'test' }), allowHalfOpen: true,
  });
  const sent = randomBytes(8 << 20);
  client.end(sent);
  const received = createHash('sha256');
  for await (const chunk of client)
    received.update(chunk);
  assert.strictEqual(received.digest('hex'), createHash('sha256').update(sent).digest('hex'));
  server.close();
  echo.close();
  console.log('every byte arrived');
}

main();
