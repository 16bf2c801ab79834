'use strict';

// Sessions that are resumed, certificates of clients, and small records.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const fixtures = require('../common/fixtures');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, cert, key, receive, run, send, socketPair, tlsPair,
} = require('../common/tls-splice');

const kSize = 1 * MiB + 27;

async function transfer(socket, peer) {
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = socket.spliceTo({ stream: endpoint }).start();
  const inward = receive(other);
  const outward = receive(peer);
  await Promise.all([
    send(peer, kSize, { seed: 1 }), send(other, kSize, { seed: 2 }),
  ]);
  (await inward).check(kSize, 1);
  (await outward).check(kSize, 2);
  const stats = await splice.finished;
  assert.strictEqual(stats.bytesIn, kSize);
  assert.strictEqual(stats.bytesOut, kSize);
  assert.strictEqual(stats.closeNotify, true);
}

for (const version of ['TLSv1.2', 'TLSv1.3']) {
  // The ticket may come while the client's socket is spliced.
  run(async () => {
    const listener = tls.createServer({
      key, cert, allowHalfOpen: true, minVersion: version, maxVersion: version,
    }).listen(0);
    await once(listener, 'listening');
    let session;
    for (const reused of [false, true, true]) {
      const accepted = once(listener, 'secureConnection');
      const client = tls.connect({
        port: listener.address().port,
        rejectUnauthorized: false,
        allowHalfOpen: true,
        session,
      });
      client.on('session', (latest) => { session = latest; });
      const { 0: { 0: server } } = await Promise.all([
        accepted, once(client, 'secureConnect'),
      ]);
      assert.strictEqual(client.isSessionReused(), reused);
      assert.strictEqual(server.isSessionReused(), reused);
      await transfer(reused ? server : client, reused ? client : server);
      assert(session);
      for (const socket of [client, server])
        socket.destroy();
    }
    listener.close();
  });

  // A client with a certificate
  run(async () => {
    const { client, server } = await tlsPair({
      allowHalfOpen: true,
      minVersion: version,
      maxVersion: version,
      server: {
        requestCert: true,
        rejectUnauthorized: true,
        ca: fixtures.readKey('ca1-cert.pem'),
      },
      client: { key, cert },
    });
    const running = transfer(server, client);
    assert.strictEqual(server.authorized, true);
    assert.strictEqual(server.getPeerCertificate().subject.CN, 'agent1');
    await running;
  });

  // Without one: the server does not accept that. With TLS 1.3 its alert comes
  // after the client's handshake.
  run(async () => {
    const { 0: endpoint, 1: other } = await socketPair();
    other.on('data', common.mustNotCall());
    const listener = tls.createServer({
      key,
      cert,
      minVersion: version,
      maxVersion: version,
      requestCert: true,
      rejectUnauthorized: true,
    }, common.mustNotCall()).listen(0);
    await once(listener, 'listening');
    const client = tls.connect({
      port: listener.address().port, rejectUnauthorized: false,
    });
    const failed = once(client, 'error');
    const done = client.pipeToNative(endpoint);
    await assert.rejects(done, { code: /^ERR_SSL_|^ECONNRESET$|^EPIPE$/ });
    await failed;
    assert.strictEqual(client.destroyed, true);
    listener.close();
  });

  for (const size of [512, 1000, 16384]) {
    run(async () => {
      const { client, server, raw } = await tlsPair({
        allowHalfOpen: true, minVersion: version, maxVersion: version, raw: true,
      });
      assert.strictEqual(server.setMaxSendFragment(size), true);
      const before = raw.bytesRead;
      await transfer(server, client);
      // Each record has a header, and a tag.
      const records = kSize / size;
      const overhead = raw.bytesRead - before - kSize;
      assert(overhead > records * 20 && overhead < records * 60, `${overhead} for ${records}`);
    });
  }
}

// In the middle of a splice
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const sizes = [512, 16384, 4096];
  const running = transfer(server, client);
  client.on('data', () => {
    const size = sizes.shift();
    if (size !== undefined)
      assert.strictEqual(server.setMaxSendFragment(size), true);
  });
  await running;
  assert.strictEqual(sizes.length, 0);
});
