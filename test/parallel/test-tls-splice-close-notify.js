'use strict';

// The end of what the TLS peer sends, with and without close_notify: the
// endpoint gets every byte and then the end, JS sees 'end', and the stats tell
// the two apart.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { alerts, kWarning, recordPair } = require('../common/tls-records');
const {
  MiB, closing, receive, run, send, settled, socketPair, tlsOver, tlsPair, turns,
} = require('../common/tls-splice');

const kSize = 1 * MiB + 9;

for (const version of ['TLSv1.2', 'TLSv1.3']) {
  for (const stall of [false, true]) {
    run(async () => {
      for (const closeNotify of [true, false]) {
        const { 0: a, 1: b } = await socketPair();
        const { client, server } = tlsOver(a, b, {
          minVersion: version, maxVersion: version, allowHalfOpen: true,
        });
        await once(client, 'secureConnect');
        const { 0: other, 1: endpoint } =
          await socketPair('unix', { pauseOnConnect: true });
        other.pause();
        const ended = once(server, 'end');
        server.on('data', common.mustNotCall());
        const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
        await send(client, kSize, { end: closeNotify });
        if (!closeNotify) {
          await settled(() => a.writableLength + splice.stats.bytesIn);
          a.end();
        }
        if (stall)
          await settled(() => splice.stats.bytesIn);
        (await receive(other)).check(kSize);
        await ended;
        const stats = await splice.finished;
        assert.strictEqual(stats.bytesIn, kSize);
        assert.strictEqual(stats.closeNotify, closeNotify);
        assert.strictEqual(stats.reason, 'end');
        // The other direction is JS's still.
        assert.strictEqual(server.writable, true);
        client.resume();
        server.end();
      }
    });
  }
}

// Without allowHalfOpen, the end of one direction is the end of the other.
run(async () => {
  const { client, server } = await tlsPair();
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint }).start();
  other.write('an answer');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'an answer');
  client.end();
  await once(other.resume(), 'end');
  const stats = await splice.finished;
  assert.strictEqual(stats.reason, 'end');
  assert.strictEqual(stats.closeNotify, true);
  assert.strictEqual(stats.bytesOut, 9);
  await once(client, 'close');
});

// It had come before the splice did.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  client.end('all of it');
  await settled(() => server.readableLength);
  assert.strictEqual(server.readableLength, 9);
  const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
  assert.strictEqual((await other.setEncoding('utf8').toArray()).join(''), 'all of it');
  const stats = await splice.finished;
  assert.strictEqual(stats.bytesIn, 9);
  assert.strictEqual(stats.reason, 'end');
  assert.strictEqual(stats.closeNotify, true);
});

// A reset behind close_notify: of what the peer sends there is no more to come, and
// TLSWrap says nothing of it until a write fails. So does a splice that only sends.
for (const version of ['TLSv1.2', 'TLSv1.3']) {
  for (const direction of [null, 'out', 'duplex']) {
    for (const by of ['stream', 'fd']) {
      for (const moment of ['after the start', 'before the start']) {
        run(async () => {
          const name = `${version}, ${direction}, ${by}, ${moment}`;
          const { peer, socket: server, tap, raw } = await recordPair({
            minVersion: version, maxVersion: version, allowHalfOpen: true,
          });
          for (const socket of [peer, raw, tap])
            socket.on('error', () => {});
          peer.write('x');
          assert.strictEqual(`${(await once(server, 'data'))[0]}`, 'x');
          const { 0: endpoint, 1: other } = await socketPair('unix', { pauseOnConnect: true });
          const target = by === 'fd' ? { fd: other._handle.fd } : { stream: other };
          const errors = [];
          server.on('error', (err) => errors.push(err));
          const ended = once(server, 'end');
          const sendEnd = async () => {
            tap.send(tap.data('bye'), tap.alert(kWarning, alerts.close_notify));
            // What has not been read by then would be lost.
            await ended;
            raw.resetAndDestroy();
          };
          if (moment === 'before the start')
            await sendEnd();
          const splice = direction && server.spliceTo({ ...target, direction }).start();
          if (moment !== 'before the start')
            await sendEnd();
          await turns(50);
          assert.deepStrictEqual(errors, [], name);
          assert.strictEqual(server.destroyed, false, name);
          const closed = closing(server);
          if (splice === null) {
            server.write('first', () => {});
            await turns();
            server.write('second', () => {});
          } else {
            assert.strictEqual(splice.state, 'running', name);
            const failed = assert.rejects(splice.finished, {
              code: /^(ECONNRESET|EPIPE)$/, syscall: 'write', side: 'tls',
            }, name);
            // The first write may be what brings the RST.
            for (const text of ['first', 'second']) {
              endpoint.write(text);
              await settled(() => server.bytesWritten);
            }
            await failed;
          }
          await closed;
          assert.strictEqual(errors.length, 1, name);
          assert.match(errors[0].code, /^(ECONNRESET|EPIPE)$/);
          endpoint.destroy();
          other.destroy();
        });
      }
    }
  }
}
