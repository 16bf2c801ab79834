'use strict';

// Half-close: whoever ends first, whether that is passed on (`end`), whether the
// socket may be half-open (allowHalfOpen), and whether there is a full sink in
// front of the end.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, payload, receive, run, settled, socketPair, tlsPair, turns,
} = require('../common/tls-splice');

// More than the kernel holds, and what is held on the way
const kSize = 16 * MiB + 37;

function writeAll(stream, size, seed) {
  for (const chunk of payload(size, seed))
    stream.write(chunk);
}

async function test({ first, end, allowHalfOpen, stall }) {
  const { client, server, raw } = await tlsPair({
    raw: true,
    server: { allowHalfOpen },
    client: { allowHalfOpen: true },
  });
  const { 0: other, 1: endpoint } = await socketPair('unix', { pauseOnConnect: true });
  const { 0: from, 1: to } = first === 'endpoint' ? [other, client] : [client, other];
  const back = first === 'endpoint' ? other : client;
  const size = stall ? kSize : 100000;

  let ended = false;
  to.on('end', () => { ended = true; });
  const jsEnded = first === 'endpoint' ? undefined : once(server, 'end');
  to.pause();
  const splice = server.spliceTo({ stream: endpoint, end }).start();
  writeAll(from, size, 1);
  if (first === 'fin') {
    // All of the payload and no close_notify
    client.write('', () => raw.end());
  } else {
    from.end();
  }
  if (stall) {
    await settled(() => splice.stats.bytesIn + splice.stats.bytesOut);
    const { bytesIn, bytesOut } = splice.stats;
    assert(bytesIn + bytesOut < size);
    assert.strictEqual(splice.state, 'running');
  }

  const received = receive(to);
  await received.receiver.reached(size);
  await jsEnded;
  if (end)
    await received;

  if (first === 'endpoint') {
    if (!end) {
      // Writing is JS's as soon as it is over.
      await settled(() => splice.stats.bytesOut);
      assert.strictEqual(ended, false);
      server.write('.');
      await received.receiver.reached(size + 1);
      server.end();
      await received;
    } else {
      received.receiver.check(size, 1);
    }
    // The other direction is not affected.
    assert.strictEqual(splice.state, 'running');
    const backward = receive(other);
    writeAll(client, 100000, 2);
    client.end();
    await backward.receiver.reached(100000);
    backward.receiver.check(100000, 2);
    if (end)
      await backward;
  } else if (allowHalfOpen) {
    assert.strictEqual(splice.state, 'running');
    if (first === 'peer') {
      const backward = receive(client);
      writeAll(other, 100000, 2);
      other.end();
      await backward.receiver.reached(100000);
      backward.receiver.check(100000, 2);
      if (end)
        await backward;
    } else {
      // A client whose stream below has ended does not get anything.
      other.end();
    }
  } else {
    // As Node does: it has ended, and so it ends.
    client.resume();
  }
  const stats = await splice.finished;
  assert.strictEqual(stats.reason, 'end');
  assert.strictEqual(stats.closeNotify, first !== 'fin');
  if (first !== 'endpoint') {
    received.receiver.check(size, 1);
    assert.strictEqual(stats.bytesIn, size);
    await turns(5);
    assert.strictEqual(ended, end);
    // It is the endpoint's owner who ends it.
    assert.strictEqual(endpoint.writableEnded, end);
    endpoint.end();
    await received;
  } else {
    assert.strictEqual(stats.bytesOut, size);
    assert.strictEqual(stats.bytesIn, 100000);
  }
  assert.strictEqual(back.errored, null);
  for (const socket of [client, server, raw, other, endpoint])
    socket.destroy();
}

run(async () => {
  for (const first of ['peer', 'fin', 'endpoint']) {
    for (const end of [true, false]) {
      for (const allowHalfOpen of [true, false]) {
        for (const stall of [false, true]) {
          const options = { first, end, allowHalfOpen, stall };
          try {
            await test(options);
          } catch (cause) {
            throw new Error(JSON.stringify(options), { cause });
          }
        }
      }
    }
  }
});
