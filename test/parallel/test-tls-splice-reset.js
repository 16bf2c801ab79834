'use strict';

// A TLS connection that is reset, or that sends rubbish: the socket is
// destroyed with that error, as without a splice, and the handle fails with it.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const { Duplex } = require('stream');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, closing, receive, record, run, send, settled, socketPair, tlsOver,
  tlsPair,
} = require('../common/tls-splice');

const damages = {
  ECONNRESET: (raw) => raw.resetAndDestroy(),
  // A record of TLS whose type does not exist, and one that cannot be decrypted
  ERR_SSL: (raw) => raw.write(Buffer.from('ff030300050000000000', 'hex')),
  ERR_SSL_: (raw) => raw.write(Buffer.concat([
    Buffer.from('1703030100', 'hex'), Buffer.alloc(256, 0x5a),
  ])),
};

for (const version of ['TLSv1.2', 'TLSv1.3']) {
  for (const direction of ['in', 'duplex', 'out']) {
    for (const { 0: code, 1: damage } of Object.entries(damages)) {
      run(async () => {
        const { 0: endpoint, 1: other } = await socketPair();
        const { client, server, raw } = await tlsPair({
          minVersion: version, maxVersion: version, allowHalfOpen: true, raw: true,
        });
        client.on('error', () => {});
        raw.on('error', () => {});
        const splice = server.spliceTo({ stream: endpoint, direction });
        const events = record(splice, ['error', 'close']);
        const closed = closing(splice);
        const failed = new Promise((resolve) => splice.once('error', resolve));
        const socketFailed = new Promise((resolve) => server.once('error', resolve));
        splice.start();
        client.write('before');
        if (direction === 'out') {
          server.resume();
          await settled(() => server.bytesRead);
        } else {
          assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'before');
        }
        damage(raw);
        const error = await failed;
        assert(error.code.startsWith(code), error.code);
        assert.strictEqual(await socketFailed, error);
        const stats = await closed;
        assert.deepStrictEqual(events, ['error', 'close']);
        assert.strictEqual(stats.reason, 'error');
        assert.strictEqual(stats.closeNotify, false);
        assert.strictEqual(stats.bytesIn, direction === 'out' ? 0 : 6);
        assert.strictEqual(server.destroyed, true);
        // The endpoint has got what was good, and no end.
        assert.strictEqual(endpoint.destroyed, false);
        assert.strictEqual(endpoint.writable, true);
        const received = receive(other);
        endpoint.end('!');
        await received;
        assert.strictEqual(received.receiver.bytes, 1);
      });
    }
  }
}

// A reset that a write runs into while the sink is full: the endpoint still gets
// what was decrypted before.
for (const separate of [false, true]) {
  run(async () => {
    const { 0: endpoint, 1: other } = await socketPair();
    const { client, server, raw } = await tlsPair({ allowHalfOpen: true, raw: true });
    client.on('error', () => {});
    raw.on('error', () => {});
    server.on('error', () => {});
    const splices = (separate ? ['in', 'out'] : ['duplex']).map(
      (direction) => server.spliceTo({ stream: endpoint, direction }).start());
    const failed = splices.map((splice) => assert.rejects(splice.finished, {
      code: /^(ECONNRESET|EPIPE)$/,
    }));
    const sending = send(client, 64 * MiB).catch(() => {});
    await settled(() => server.bytesRead);
    const { bytesRead } = server;
    assert(bytesRead > splices[0].stats.bytesIn);
    raw.resetAndDestroy();
    // The second write fails for sure: the first may be what brings the RST.
    other.write('x');
    await settled(() => server.bytesWritten);
    other.write('y');
    await settled(() => server.bytesWritten);
    assert.strictEqual(server.destroyed, false);
    const received = receive(other);
    await Promise.all([...failed, sending]);
    assert.strictEqual(splices[0].stats.bytesIn, bytesRead);
    endpoint.end();
    await received;
    assert.strictEqual(received.receiver.bytes, bytesRead);
  });
}

// The same after the end of the connection has been read, and waits for the sink.
for (const separate of [false, true]) {
  run(async () => {
    const { 0: endpoint, 1: other } = await socketPair();
    const { client, server } = await tlsPair({ maxVersion: 'TLSv1.2', allowHalfOpen: true });
    server.on('error', () => {});
    client.write('before');
    await once(server, 'readable');
    endpoint.cork();
    const splices = (separate ? ['in', 'out'] : ['duplex']).map(
      (direction) => server.spliceTo({ stream: endpoint, direction }).start());
    const failed = splices.map((splice) => assert.rejects(splice.finished, {
      code: 'EPIPE', syscall: 'write',
    }));
    client.destroy();
    await once(client, 'close');
    for (const byte of 'xy') {
      await settled(() => server.bytesWritten);
      other.write(byte);
    }
    await settled(() => server.bytesWritten);
    assert.strictEqual(server.bytesWritten, 2);
    assert.strictEqual(server.destroyed, false);
    endpoint.uncork();
    assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'before');
    await Promise.all(failed);
    assert.strictEqual(splices[0].stats.bytesIn, 6);
    assert.strictEqual(server.destroyed, true);
  });
}

// The end of the handshake, data, close_notify and a reset arrive together. What
// the server then writes, session tickets, fails while the data is on its way.
run(async () => {
  const { 0: endpoint, 1: other } = await socketPair();
  const { 0: wire, 1: under } = await socketPair();
  let held;
  const duplex = new Duplex({
    read() {},
    write(chunk, encoding, callback) {
      if (held)
        held.push(chunk);
      else
        wire.write(chunk);
      callback();
    },
    final(callback) {
      wire.write(Buffer.concat(held), () => wire.resetAndDestroy());
      callback();
    },
  });
  wire.on('error', () => {});
  wire.on('data', (chunk) => {
    held ??= [];  // All after ClientHello
    duplex.push(chunk);
  });
  const { client, server } = tlsOver(duplex, under, { minVersion: 'TLSv1.3' });
  client.on('error', () => {});
  client.once('secureConnect', () => client.end('x'.repeat(133)));
  server.on('error', () => {});
  await once(server, 'secure');
  const splice = server.spliceTo({ stream: endpoint }).start();
  const received = once(other, 'data');
  other.end('y'.repeat(10_000));
  await assert.rejects(splice.finished, { code: /^(ECONNRESET|EPIPE)$/ });
  assert.strictEqual((await received)[0].length, 133);
  assert.strictEqual(server.destroyed, true);
});
