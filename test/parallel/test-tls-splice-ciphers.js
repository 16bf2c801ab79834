'use strict';

// Each cipher suite of the default list, and PSK: a transfer both ways, with a
// stop() in the middle.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const fixtures = require('../common/fixtures');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  cert, key, receive, run, send, socketPair, tlsPair,
} = require('../common/tls-splice');

const kSize = 1e6 + 1;

async function transfer({ client, server }) {
  const { 0: endpoint, 1: other } = await socketPair();
  const inward = receive(other);
  const outward = receive(client);
  // Neither ends before the second splice has started.
  const sending = [
    send(client, kSize, { seed: 1, end: false }), send(other, kSize, { seed: 2, end: false }),
  ];
  const options = { stream: endpoint, highWaterMark: 20000 };
  let splice = server.spliceTo(options).start();
  await Promise.race([
    inward.receiver.reached(kSize / 2), outward.receiver.reached(kSize / 2),
  ]);
  // What comes to JS goes back, to be the next splice's first.
  let rest = Buffer.alloc(0);
  const onData = (chunk) => { rest = Buffer.concat([rest, chunk]); };
  server.on('data', onData);
  const { bytesIn, bytesOut } = await splice.stop();
  server.removeListener('data', onData);
  server.pause();
  server.unshift(rest);
  splice = server.spliceTo(options).start();
  await Promise.all(sending);
  client.end();
  other.end();
  (await inward).check(kSize, 1);
  (await outward).check(kSize, 2);
  const stats = await splice.finished;
  assert.strictEqual(bytesIn + stats.bytesIn, kSize);
  assert.strictEqual(bytesOut + stats.bytesOut, kSize);
}

// With keys for each way to authenticate
const options = {
  key: [key, fixtures.readKey('ec-key.pem')],
  cert: [cert, fixtures.readKey('ec-cert.pem')],
  dhparam: 'auto',
  allowHalfOpen: true,
};

run(async () => {
  const named = tls.DEFAULT_CIPHERS.split(':').filter((name) =>
    tls.getCiphers().includes(name.toLowerCase()));
  assert(named.length > 0);
  const done = [];
  for (const cipher of tls.getCiphers().map((name) => name.toUpperCase())) {
    let pair;
    const is13 = cipher.startsWith('TLS_');
    try {
      pair = await tlsPair({
        ...options,
        maxVersion: is13 ? 'TLSv1.3' : 'TLSv1.2',
        client: { ciphers: cipher },
      });
    } catch (err) {
      // It is not one of the default list, or asks for another kind of key.
      assert.match(err.code, /^ERR_SSL_|^ECONNRESET$/);
      continue;
    }
    assert.strictEqual(pair.client.getCipher().name, cipher);
    await transfer(pair);
    done.push(cipher);
  }
  for (const cipher of named)
    assert(done.includes(cipher), `${cipher} is not in ${done}`);
});

// PSK
for (const { 0: version, 1: ciphers } of [
  ['TLSv1.2', 'PSK'], ['TLSv1.2', 'ECDHE-PSK-AES128-CBC-SHA256'], ['TLSv1.3', undefined],
]) {
  run(async () => {
    const psk = Buffer.from('d731ef57be09e5204f0b205b60627028', 'hex');
    const pair = await tlsPair({
      allowHalfOpen: true,
      minVersion: version,
      maxVersion: version,
      ciphers,
      key: undefined,
      cert: undefined,
      server: { pskCallback: () => psk },
      client: {
        pskCallback: () => ({ identity: 'a', psk }),
        // There is no certificate.
        checkServerIdentity() {},
      },
    });
    assert.deepStrictEqual(pair.server.getPeerCertificate(), {});
    await transfer(pair);
  });
}
