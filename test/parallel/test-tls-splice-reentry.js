'use strict';

// Listeners that OpenSSL calls, through Node, in the middle of its work: the
// splice that they stop or destroy ends when it is done.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const fs = require('fs');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { fifo, isOpen, run, socketPair, tlsPair } = require('../common/tls-splice');

// The session tickets of TLS 1.3 come after the handshake.
run(async () => {
  for (const method of ['stop', 'destroy']) {
    const { 0: endpoint } = await socketPair();
    const { client, server } = await tlsPair({
      minVersion: 'TLSv1.3', allowHalfOpen: true,
    });
    server.on('error', () => {});
    const splice = client.spliceTo({ stream: endpoint }).start();
    let done;
    client.once('session', () => {
      done = method === 'stop' ? splice.stop() : client.destroy();
    });
    server.write('x');
    if (method === 'stop') {
      const { bytesIn, reason } = await splice.finished;
      assert.strictEqual(reason, 'stopped');
      await done;
      if (bytesIn === 0)
        assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'x');
    } else {
      assert.match((await splice.finished).reason, /^(destroyed|stopped)$/);
    }
  }
});

// With autoClose the file descriptor is closed when 'close' is emitted, although OpenSSL is
// still in the middle of a call of the pump when the socket is destroyed.
for (const event of ['secure', 'session']) {
  run(async () => {
    const { reader, writer } = fifo();
    const { client, server } = await tlsPair({ maxVersion: 'TLSv1.2', allowHalfOpen: true });
    for (const socket of [client, server])
      socket.on('error', () => {});
    const splice = client.spliceTo({ fd: writer, direction: 'in', autoClose: true }).start();
    const closed = once(splice, 'close').then(() => isOpen(writer));
    server.write('x');
    while (splice.stats.bytesIn === 0)
      await new Promise(setImmediate);
    client.once(event, common.mustCall(() => client.destroy()));
    client.renegotiate({}, () => {});
    assert.strictEqual(await closed, false);
    fs.closeSync(reader);
  });
}
