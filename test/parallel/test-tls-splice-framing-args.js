'use strict';

// The options of a splice that are about packets.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { closing, fifo, ipv6, isOpen, receive, run, socketPair, tlsPair } = require('../common/tls-splice');

const type = { code: 'ERR_INVALID_ARG_TYPE', name: 'TypeError' };
const value = { code: 'ERR_INVALID_ARG_VALUE', name: 'TypeError' };
const range = { code: 'ERR_OUT_OF_RANGE', name: 'RangeError' };

// What is no framing, or does not fit
run(async () => {
  const { server: socket, client } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint } = await socketPair();
  const { server: other } = await tlsPair({ allowHalfOpen: true });
  const { writer: fd } = fifo();
  const direction = 'in';
  const bad = (options, expected) => assert.throws(() => socket.spliceTo(options), expected);

  for (const framing of [null, 1, true, {}, []])
    bad({ fd, direction, framing }, type);
  for (const framing of ['', 'u32be', 'RAW', 'toString'])
    bad({ fd, direction, framing }, value);
  for (const maxPacketSize of [null, '1', true, {}, [], 1n])
    bad({ fd, direction, framing: 'ip', maxPacketSize }, type);
  for (const maxPacketSize of [0, -1, 1.5, NaN, Infinity, 2 ** 53])
    bad({ fd, direction, framing: 'ip', maxPacketSize }, range);

  const noPackets = { ...value, message: /options\.maxPacketSize.* needs a framing that has packets/ };
  for (const to of [{ fd }, { stream: endpoint }, { stream: other }]) {
    bad({ ...to, direction, framing: 'u16be' }, value);
    for (const framing of [undefined, 'auto', 'raw'])
      bad({ ...to, direction, framing, maxPacketSize: 1500 }, noPackets);
  }

  // Of several errors the first is reported, in the order in which the options are documented.
  const order = [['end', 0], ['framing', 'u32be'], ['maxPacketSize', 0], ['head', 'text']];
  for (let i = 0; i < order.length; i++) {
    const message = new RegExp(`options\\.${order[i][0]}\\b`);
    bad({ ...Object.fromEntries(order.slice(i)), stream: endpoint }, { message });
  }
  client.destroy();
});

// A rejection of pipeToNative() closes a descriptor that is handed over.
for (const framing of ['x', 'u16be']) {
  run(async () => {
    const { server } = await tlsPair({ allowHalfOpen: true });
    const { writer } = fifo();
    const options = { direction: 'in', autoClose: true, framing };
    await assert.rejects(server.pipeToNative(writer, options), value);
    assert(!isOpen(writer));
  });
}

// Counters of packets stay 0 where there are none.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
  client.end('bytes');
  await receive(other);
  const { packetsIn, packetsOut, dropsIn, dropsOut } = await splice.finished;
  assert.deepStrictEqual([packetsIn, packetsOut, dropsIn, dropsOut], [0, 0, 0, 0]);
});

// The head is packets, too.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const bytes = Buffer.concat([ipv6(100, 1), ipv6(1280, 2)]);
  const received = receive(other);
  const splice = server.spliceTo({
    stream: endpoint, direction: 'in', framing: 'ipv6', head: bytes.subarray(0, 120),
  }).start();
  client.write(bytes.subarray(120));
  await received.receiver.reached(bytes.length);
  assert.strictEqual(splice.stats.packetsIn, 2);
  client.end();
  await splice.finished;
});

// The error of a splice says which side has sent what is no packet.
for (const side of ['tls', 'endpoint']) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair();
    const splice = server.spliceTo({ stream: endpoint, framing: 'ip' }).start();
    const closed = closing(splice);
    splice.on('error', common.mustCall((err) => {
      assert.strictEqual(err.code, 'ERR_TLS_SPLICE_FRAMING');
      assert.strictEqual(err.side, side);
      assert.strictEqual(splice.errored, err);
    }));
    (side === 'tls' ? client : other).write(Buffer.alloc(9));
    await closed;
    assert.strictEqual(splice.errored.side, side);
  });
}
