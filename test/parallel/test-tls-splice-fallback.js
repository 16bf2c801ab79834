'use strict';

// A TLSSocket that is spliced while it connects, and whose first address is refused, so that it
// gets another handle (autoSelectFamily): what JavaScript does meanwhile is not lost with the
// first handle.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (!common.hasIPv6)
  common.skip('no IPv6 support');
if (common.isWindows)
  common.skip('no /dev/null on Windows');

const assert = require('assert');
const { once } = require('events');
const fs = require('fs');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { cert, key, run, tlsPair, turns } = require('../common/tls-splice');

// A server on the loopback of IPv4 alone, and a client of it that first tries IPv6. The client
// connects when `connect()` is called.
async function connecting() {
  const server = tls.createServer({ key, cert, allowHalfOpen: true }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const accepted = once(server, 'secureConnection');
  let connect;
  const client = tls.connect({
    host: 'localhost',
    port: server.address().port,
    rejectUnauthorized: false,
    allowHalfOpen: true,
    autoSelectFamily: true,
    lookup(name, options, callback) {
      connect = () => callback(null, [
        { address: '::1', family: 6 }, { address: '127.0.0.1', family: 4 },
      ]);
    },
  });
  const { _handle: first } = client;
  const secured = once(client, 'secureConnect');
  return {
    client,
    // Returns the socket of the server.
    async connect() {
      connect();
      const { 0: { 0: peer } } = await Promise.all([accepted, secured]);
      assert.notStrictEqual(client._handle, first);
      server.close();
      return peer;
    },
  };
}

// The splice stops while its endpoint connects.
run(async () => {
  const { client: far, server: socket } = await tlsPair();
  const { client: endpoint, connect } = await connecting();
  endpoint.write('before ');
  const splice = socket.spliceTo({ stream: endpoint }).start();
  // The first of the two joined splices has begun.
  await turns();
  const stopped = splice.stop();
  const written = new Promise((resolve) => endpoint.write('after', common.mustSucceed(resolve)));
  const peer = await connect();
  let text = '';
  while (text.length < 'before after'.length)
    text += (await once(peer, 'data'))[0];
  assert.strictEqual(text, 'before after');
  await Promise.all([written, stopped]);
  for (const each of [far, socket, endpoint, peer])
    each.destroy();
});

// The socket is ended while it connects.
run(async () => {
  const { client, connect } = await connecting();
  const fd = fs.openSync('/dev/null');
  const splice = client.spliceTo({ fd, direction: 'out', autoClose: true }).start();
  client.end();
  const peer = await connect();
  await once(peer.resume(), 'end');
  assert.strictEqual((await splice.finished).reason, 'end');
  for (const each of [client, peer])
    each.destroy();
});
