'use strict';

// Sockets as they come, none of them half-open: whoever ends first, the other
// ends too, everything that was sent arrives, and the splice ends well.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const net = require('net');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, cert, key, payload, receive, run,
} = require('../common/tls-splice');

const kSize = 1 * MiB + 29;

async function test(first, options) {
  // The upstream answers a question, and ends if it is its turn.
  const upstream = net.createServer((socket) => {
    socket.once('data', common.mustCall((data) => {
      assert.strictEqual(`${data}`, 'question');
      for (const chunk of payload(kSize))
        socket.write(chunk);
      if (first === 'upstream')
        socket.end();
      socket.resume();
    }));
  }).listen(0);
  await once(upstream, 'listening');
  const result = Promise.withResolvers();
  const server = tls.createServer({ key, cert, ...options }, (socket) => {
    const endpoint = net.connect(upstream.address().port);
    endpoint.on('connect', () => {
      socket.pipeToNative(endpoint).then(result.resolve, result.reject);
    });
    result.promise.finally(() => endpoint.destroy());
  }).listen(0);
  await once(server, 'listening');
  const client = tls.connect({ port: server.address().port, rejectUnauthorized: false });
  client.write('question');
  const receiving = receive(client);
  if (first === 'client')
    receiving.receiver.reached(kSize).then(() => client.end());
  const received = await receiving;
  const stats = await result.promise;
  received.check(kSize);
  assert.strictEqual(stats.reason, 'end');
  assert.strictEqual(stats.bytesIn, 8);
  assert.strictEqual(stats.bytesOut, kSize);
  server.close();
  upstream.close();
}

run(async () => {
  for (const first of ['upstream', 'client']) {
    await test(first);
    await test(first, { allowHalfOpen: true });
  }
});
