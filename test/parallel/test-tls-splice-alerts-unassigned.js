'use strict';

// A fatal alert is an error of the splice whatever its number is. OpenSSL has no name for the
// error of a number that is not assigned, and Node.js drops an error without a name.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const assert = require('assert');
const { once } = require('events');
const { alerts, kFatal, kWarning, recordPair } = require('../common/tls-records');
const { closing, receive, run, socketPair, turns } = require('../common/tls-splice');

// Numbers of RFC 8446, 6, its predecessors and its extensions, with the next ones above and
// below each, and the ends of the range.
const kNumbers = [
  1, 9, 10, 11, 19, 20, 21, 22, 23, 29, 30, 31, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50,
  51, 52, 59, 60, 61, 69, 70, 71, 72, 79, 80, 81, 85, 86, 87, 91, 99, 100, 101, 108, 109, 110,
  111, 112, 113, 114, 115, 116, 117, 119, 120, 121, 122, 199, 254, 255,
];

async function test({ version, isServer, level, number, direction, before, isLate }) {
  const { socket, tap, peer } = await recordPair({
    isServer, minVersion: version, maxVersion: version, allowHalfOpen: true,
  });
  const { 0: endpoint, 1: far } = await socketPair('unix');
  const errors = [];
  socket.on('error', (err) => errors.push(err));
  peer.on('error', () => {});
  peer.resume();
  // The tap needs a record that it can copy.
  peer.write('first');
  const received = receive(far);
  const splice = socket.spliceTo({ stream: endpoint, direction }).start();
  const closed = closing(splice);
  await received.receiver.reached(5);
  const records = [before && tap.data(before), tap.alert(level, number)].filter(Boolean);
  if (isLate)
    far.write('to the peer');
  tap.send(...records);
  await assert.rejects(splice.finished, (err) => {
    assert.match(err.code, /^ERR_SSL_/);
    assert.match(err.message, new RegExp(`SSL alert number ${number}\\b`));
    assert.strictEqual(err.side, 'tls');
    assert.strictEqual(err, errors[0]);
    return true;
  });
  const { reason, bytesIn, closeNotify } = await closed;
  assert.strictEqual(reason, 'error');
  assert.strictEqual(bytesIn, 5 + before.length);
  assert.strictEqual(closeNotify, false);
  await received.receiver.reached(bytesIn);
  assert.strictEqual(received.receiver.bytes, bytesIn);
  assert.strictEqual(errors.length, 1);
  assert.strictEqual(socket.destroyed, true);
  endpoint.destroy();
  far.destroy();
}

for (const version of ['TLSv1.2', 'TLSv1.3']) {
  for (const [i, number] of kNumbers.entries()) {
    run(() => test({
      version,
      number,
      isServer: i % 2 === 0,
      // In TLS 1.3 the level says nothing.
      level: version === 'TLSv1.3' && i % 3 === 0 ? kWarning : kFatal,
      direction: i % 4 < 2 ? 'in' : 'duplex',
      before: i % 5 < 2 ? 'behind data' : '',
      isLate: i % 7 < 3,
    }));
  }
  // 'out' alone: JavaScript reads, and is told as without a splice. What the splice has to
  // send afterwards cannot be sent, and that is an error of TLS, too.
  for (const isServer of [false, true]) {
    run(async () => {
      const { socket, tap, peer, under } = await recordPair({
        isServer, minVersion: version, maxVersion: version, allowHalfOpen: true,
      });
      const { 0: endpoint, 1: far } = await socketPair('unix');
      socket.on('error', () => {}).resume();
      peer.on('error', () => {});
      peer.resume();
      peer.write('first');
      await once(socket, 'data');
      const splice = socket.spliceTo({ stream: endpoint, direction: 'out' }).start();
      const { bytesRead } = under;
      tap.send(tap.alert(kFatal, 199));
      while (under.bytesRead === bytesRead)
        await turns(1);
      far.write('to the peer');
      await assert.rejects(splice.finished, { code: /^ERR_SSL_/, side: 'tls' });
      assert.strictEqual(socket.destroyed, true);
      endpoint.destroy();
      far.destroy();
    });
  }
}

// A fatal close_notify is none in TLS 1.2.
run(() => test({
  version: 'TLSv1.2', number: alerts.close_notify, isServer: true, level: kFatal,
  direction: 'in', before: '', isLate: false,
}));
